// Command fleet-oidc is a small real OIDC issuer that speaks as Zitadel does for
// machine users. It is a fixture for tests and demos, not for production.
//
//	fleet-oidc --config fleet-oidc.toml
//
// docs/issuer.md describes the configuration. SIGHUP
// rotates the signing key; SIGINT and SIGTERM stop the program. It exits with
// 0 after a stop, 1 when it fails, 2 when its command line or configuration is
// wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/version"
)

const usage = `Usage: fleet-oidc --config FILE

A small OIDC issuer that speaks as Zitadel does for machine users:
a fixture for tests and demos, not for production.

  --config FILE   TOML configuration; docs/issuer.md has every key
  --version       print the version and exit
  --help          print this and exit

SIGHUP rotates the signing key.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("fleet-oidc", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	config := flags.String("config", "", "")
	showVersion := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "fleet-oidc: %v\n\n%s", err, usage)
		return 2
	case *showVersion:
		fmt.Fprintln(stdout, "fleet-oidc", version.String())
		return 0
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "fleet-oidc: unexpected argument %q\n\n%s", flags.Arg(0), usage)
		return 2
	case *config == "":
		fmt.Fprintf(stderr, "fleet-oidc: --config is needed\n\n%s", usage)
		return 2
	}
	cfg, err := issuer.LoadConfig(*config)
	if err != nil {
		fmt.Fprintf(stderr, "fleet-oidc: %v\n", err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	// The provider library writes to the default logger.
	slog.SetDefault(log)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	if err := issuer.Run(ctx, cfg, log, hup); err != nil {
		fmt.Fprintf(stderr, "fleet-oidc: %v\n", err)
		return 1
	}
	return 0
}

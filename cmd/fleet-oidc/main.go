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
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/program"
)

const usage = `Usage: fleet-oidc --config FILE

A small OIDC issuer that speaks as Zitadel does for machine users:
a fixture for tests and demos, not for production.

  --config FILE   TOML configuration; docs/issuer.md has every key
  --version       print the version and exit
  --help          print this and exit

SIGHUP rotates the signing key.
`

func main() { program.Main(run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	line, code, done := program.Service{Name: "fleet-oidc", Usage: usage}.Parse(args, stdout, stderr)
	if done {
		return code
	}
	cfg, err := issuer.LoadConfig(line.Config)
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

// Command fleet-callout is the NATS auth callout service of Harmony Fleet: it verifies
// OIDC tokens and gives out scoped NATS permissions. docs/callout.md tells how to
// configure and run it.
//
//	fleet-callout --config FILE [--check]
//	fleet-callout keygen --dir DIR
//	fleet-callout --version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/program"
	"github.com/harmony-fleet/fleet/internal/version"
)

func main() { program.Main(run) }

const usage = `fleet-callout --config FILE [--check]   serve, or only check the configuration
fleet-callout keygen --dir DIR          make issuer.seed and xkey.seed, print their public keys
fleet-callout --version
`

// run returns the exit code: 0, 1 for a failure, 2 for wrong usage or configuration.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "keygen" {
		return keygen(args[1:], stdout, stderr)
	}
	flags := flag.NewFlagSet("fleet-callout", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	file := flags.String("config", "", "configuration file (TOML)")
	check := flags.Bool("check", false, "check the configuration and the files it names, then exit")
	showVersion := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	switch {
	case *showVersion:
		fmt.Fprintln(stdout, "fleet-callout", version.String())
		return 0
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "fleet-callout: unexpected argument %q\n%s", flags.Arg(0), usage)
		return 2
	case *file == "":
		fmt.Fprintf(stderr, "fleet-callout: --config is needed\n%s", usage)
		return 2
	}

	cfg, err := callout.Load(*file)
	if err != nil {
		fmt.Fprintln(stderr, "fleet-callout:", err)
		return 2
	}
	logger := cfg.Log.New(stderr)
	svc, err := callout.New(callout.Options{Config: cfg, Logger: logger})
	if err != nil {
		fmt.Fprintln(stderr, "fleet-callout:", err)
		return 2
	}
	keys := svc.PublicKeys()
	if *check {
		fmt.Fprintf(stdout, "%s is valid\nauth_callout.issuer: %s\nauth_callout.xkey: %s\n", *file, keys.Issuer, keys.XKey)
		return 0
	}
	logger.Info("fleet-callout starts", "version", version.String(), "issuer_key", keys.Issuer, "xkey", keys.XKey)
	if err := svc.Run(ctx); err != nil {
		logger.Error("fleet-callout ends", "error", err)
		return 1
	}
	return 0
}

func keygen(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("fleet-callout keygen", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", "", "directory for issuer.seed and xkey.seed; made if missing")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case *dir == "" || flags.NArg() > 0:
		fmt.Fprint(stderr, "fleet-callout keygen: --dir DIR is needed, and nothing else\n")
		return 2
	}
	keys, err := callout.GenerateSeeds(*dir)
	if err != nil {
		fmt.Fprintln(stderr, "fleet-callout keygen:", err)
		return 1
	}
	fmt.Fprintf(stdout, "issuer = %q\nxkey = %q\n", keys.Issuer, keys.XKey)
	return 0
}

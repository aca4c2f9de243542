// Command fleet-operator is the Kubernetes operator of Harmony Fleet: it shows the
// fleet's devices as resources, and brings Deployments to them. docs/operator.md tells
// how to configure and run it.
//
//	fleet-operator --config FILE [--check]
//	fleet-operator --version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/harmony-fleet/fleet/internal/operator"
	"github.com/harmony-fleet/fleet/internal/operator/config"
	"github.com/harmony-fleet/fleet/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = `fleet-operator --config FILE [--check]   act, or only check the configuration
fleet-operator --version
`

// run returns the exit code: 0, 1 for a failure, 2 for wrong usage or configuration.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("fleet-operator", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	file := flags.String("config", "", "configuration file (TOML)")
	check := flags.Bool("check", false, "check the configuration, then exit")
	showVersion := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	switch {
	case *showVersion:
		fmt.Fprintln(stdout, "fleet-operator", version.String())
		return 0
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "fleet-operator: unexpected argument %q\n%s", flags.Arg(0), usage)
		return 2
	case *file == "":
		fmt.Fprintf(stderr, "fleet-operator: --config is needed\n%s", usage)
		return 2
	}
	cfg, err := config.Load(*file)
	if err != nil {
		fmt.Fprintln(stderr, "fleet-operator:", err)
		return 2
	}
	if *check {
		fmt.Fprintf(stdout, "%s is valid\n", *file)
		return 0
	}
	logger := cfg.Log.New(stderr)
	op, err := operator.New(operator.Options{Config: cfg, Logger: logger})
	if err != nil {
		fmt.Fprintln(stderr, "fleet-operator:", err)
		return 2
	}
	logger.Info("fleet-operator starts", "version", version.String(), "namespace", cfg.Kubernetes.Namespace)
	if err := op.Run(ctx); err != nil {
		logger.Error("fleet-operator ends", "error", err)
		return 1
	}
	return 0
}

// Command fleet-agent runs on a device of a Harmony Fleet: it answers commands,
// reports status, and follows the desired state. docs/agent.md tells how to
// configure it.
//
//	fleet-agent --config FILE [--check]
//	fleet-agent --version
//
// It exits with 0 after SIGINT or SIGTERM, 1 when it fails, 2 when its command
// line or configuration is wrong.
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

	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/tomlconfig"
	"github.com/harmony-fleet/fleet/internal/version"
)

const usage = `Usage: fleet-agent --config FILE [--check]

The agent of a Harmony Fleet device.

  --config FILE   TOML configuration
  --check         check the configuration and exit
  --version       print the version and exit
  --help          print this and exit
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("fleet-agent", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("config", "", "")
	check := flags.Bool("check", false, "")
	showVersion := flags.Bool("version", false, "")
	wrong := func(format string, args ...any) int {
		fmt.Fprintf(stderr, "fleet-agent: %s\n\n%s", fmt.Sprintf(format, args...), usage)
		return 2
	}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		return wrong("%v", err)
	case *showVersion:
		fmt.Fprintln(stdout, "fleet-agent", version.String())
		return 0
	case flags.NArg() > 0:
		return wrong("unexpected argument %q", flags.Arg(0))
	case *file == "":
		return wrong("--config is needed")
	}
	cfg, err := agent.LoadConfig(*file)
	if err != nil {
		fmt.Fprintln(stderr, "fleet-agent:", err)
		return 2
	}
	opts, err := cfg.Options(tomlconfig.Log(cfg.Log).New(stderr))
	if err == nil {
		opts.Version = version.String()
	}
	var a *agent.Agent
	if err == nil {
		a, err = agent.New(opts)
	}
	if err != nil {
		fmt.Fprintln(stderr, "fleet-agent:", err)
		return 2
	}
	if *check {
		fmt.Fprintf(stdout, "%s is valid\n", *file)
		return 0
	}
	if err := a.Run(ctx); err != nil {
		fmt.Fprintln(stderr, "fleet-agent:", err)
		return 1
	}
	return 0
}

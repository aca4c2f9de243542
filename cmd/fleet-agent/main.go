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
	"fmt"
	"io"

	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/program"
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

func main() { program.Main(run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	line, code, done := program.Service{Name: "fleet-agent", Usage: usage, Checks: true}.Parse(args, stdout, stderr)
	if done {
		return code
	}
	cfg, err := agent.LoadConfig(line.Config)
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
	if line.Check {
		fmt.Fprintf(stdout, "%s is valid\n", line.Config)
		return 0
	}
	if err := a.Run(ctx); err != nil {
		fmt.Fprintln(stderr, "fleet-agent:", err)
		return 1
	}
	return 0
}

// Command fleet-operator is the Kubernetes operator of Harmony Fleet: it shows the
// fleet's devices as resources, and brings Deployments to them. docs/operator.md tells
// how to configure and run it.
//
//	fleet-operator --config FILE [--check]
//	fleet-operator --version
package main

import (
	"context"
	"fmt"
	"io"

	"github.com/harmony-fleet/fleet/internal/operator"
	"github.com/harmony-fleet/fleet/internal/operator/config"
	"github.com/harmony-fleet/fleet/internal/program"
	"github.com/harmony-fleet/fleet/internal/version"
)

func main() { program.Main(run) }

const usage = `fleet-operator --config FILE [--check]   act, or only check the configuration
fleet-operator --version
`

// run returns the exit code: 0, 1 for a failure, 2 for wrong usage or configuration.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	line, code, done := program.Service{Name: "fleet-operator", Usage: usage, Checks: true}.Parse(args, stdout, stderr)
	if done {
		return code
	}
	cfg, err := config.Load(line.Config)
	if err != nil {
		fmt.Fprintln(stderr, "fleet-operator:", err)
		return 2
	}
	if line.Check {
		fmt.Fprintf(stdout, "%s is valid\n", line.Config)
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

// Command fleet-cluster is the local cluster for people: up, down, status,
// kubeconfig, load, kubectl. It stands apart from `fleet` so that the operator's tool
// does not pull in Kubernetes.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/e2e/cluster/command"
)

func main() {
	var asJSON, verbose bool
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	root := command.New(command.Settings{
		JSON:   func() bool { return asJSON },
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	})
	root.SilenceUsage, root.SilenceErrors = true, true
	root.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	root.PersistentFlags().BoolVarP(&verbose, "verbose", "v", false, "log what happens")
	root.PersistentPreRun = func(*cobra.Command, []string) {
		if verbose {
			level.Set(slog.LevelDebug)
		}
	}
	err := root.ExecuteContext(context.Background())
	var exit *command.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

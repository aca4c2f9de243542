package cli

import (
	"errors"

	"github.com/spf13/cobra"

	cluster "github.com/harmony-fleet/fleet/e2e/cluster/command"
)

// newClusterCommand is `fleet cluster`, which is made in its own package: it knows
// Kubernetes and nothing of NATS. What it needs of this one is the output format
// and the exit code.
func newClusterCommand(a *app) *cobra.Command {
	root := cluster.New(cluster.Settings{JSON: a.json, Logger: a.logger})
	for _, sub := range root.Commands() {
		run := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			err := run(cmd, args)
			var exit *cluster.ExitError
			if errors.As(err, &exit) {
				return exitError{code: exit.Code}
			}
			return err
		}
	}
	return root
}

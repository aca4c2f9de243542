package cli

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	cluster "github.com/harmony-fleet/fleet/e2e/cluster/command"
)

// newClusterCommand is `fleet cluster`, which is made in its own package: it knows
// Kubernetes and nothing of NATS. What it needs of this one is the output format
// and the exit code.
func newClusterCommand(a *app) *cobra.Command {
	root := cluster.New(cluster.Settings{JSON: a.json, Logger: a.logger})
	// Without a command of its own, help; with something else, an error.
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	for _, sub := range root.Commands() {
		if sub.Name() == "kubectl" {
			sub.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
				return fmt.Errorf("%w; what is meant for kubectl goes after --", err)
			})
		}
		run := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			if network := cmd.Flag("network").Value.String(); !isPrefix(network) {
				return rejected("--network %q: want an IPv4 network such as 10.213.0.0/16", network)
			}
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

func isPrefix(s string) bool {
	p, err := netip.ParsePrefix(s)
	return err == nil && p.Addr().Is4()
}

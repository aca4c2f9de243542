package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/internal/cli/rollout"
)

// newRolloutCommand is `fleet rollout`, which is made in its own package: it knows
// Kubernetes and nothing of NATS.
func newRolloutCommand(a *app) *cobra.Command {
	return rollout.New(rollout.Settings{JSON: a.json, Timeout: func() time.Duration { return a.timeout }})
}

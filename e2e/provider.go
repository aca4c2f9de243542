package e2e

import (
	"context"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/provider"
)

// selectProvider gives the provider that the options name.
func selectProvider(ctx context.Context, o Options) (cluster.Provider, error) {
	if o.hooks.provider != nil {
		return o.hooks.provider, nil
	}
	return provider.Select(ctx, provider.Options{
		Kind: o.Cluster, Kubeconfig: o.Kubeconfig, Registry: o.Registry, Progress: o.Progress, Logger: o.Logger,
	})
}

package e2e

import (
	"context"
	"fmt"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/local"
)

// selectProvider gives the provider that the options name.
func selectProvider(_ context.Context, o Options) (cluster.Provider, error) {
	if o.hooks.provider != nil {
		return o.hooks.provider, nil
	}
	switch {
	case o.Registry != "":
		return nil, fmt.Errorf("registry %s: the local cluster takes none yet", o.Registry)
	case o.Cluster == "auto" || o.Cluster == "local":
		return local.New(local.Options{Progress: o.Progress, Logger: o.Logger}), nil
	}
	return nil, fmt.Errorf("cluster %q is not known: use local", o.Cluster)
}

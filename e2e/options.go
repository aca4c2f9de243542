package e2e

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/harmony-fleet/fleet/e2e/cluster"
)

// AuthMode is a way to sign in.
type AuthMode string

// The ways to sign in. A test that says nothing of identity runs the same in both.
const (
	// Callout is the way of production: OIDC tokens, which the auth callout turns
	// into permissions.
	Callout AuthMode = "callout"
	// UserPass has one static user for each account and no callout. Devices are not
	// isolated from each other.
	UserPass AuthMode = "userpass"
)

// Environment variables. Options that are set go before them.
const (
	// EnvGate must be "1" for tests that need a cluster to run; see [New].
	EnvGate = "HARMONY_FLEET_E2E"
	// EnvKeep "1" leaves namespaces in place; see Options.KeepNamespace.
	EnvKeep = "FLEET_E2E_KEEP"
	// EnvForceRebuild "1" builds all images again; see Options.ForceRebuild.
	EnvForceRebuild = "FLEET_E2E_FORCE_REBUILD"
	// EnvCluster is the default of Options.Cluster.
	EnvCluster = "FLEET_E2E_CLUSTER"
	// EnvRegistry is the default of Options.Registry.
	EnvRegistry = "FLEET_E2E_REGISTRY"
	// EnvDiagnostics is the directory below which diagnostics are saved; default
	// harmony-fleet-e2e in the directory for temporary files.
	EnvDiagnostics = "FLEET_E2E_DIAGNOSTICS"
)

// MaxDevices is how many devices one stack may have.
const MaxDevices = 1000

// Options say what to bring up. The zero value is one device as a Pod, in callout
// mode, on whatever cluster there is. Nothing in it may change after BringUp.
type Options struct {
	// Kubeconfig is the file of a cluster that somebody else runs. Empty: the
	// provider's, or with Cluster "kubeconfig" that of $KUBECONFIG.
	Kubeconfig string
	// Cluster is the provider of the cluster: "auto", "kubeconfig", "k3d" or "local".
	// Default $FLEET_E2E_CLUSTER, else "auto".
	Cluster string
	// NumDevices is how many agents run. Default 1, at most MaxDevices.
	NumDevices int
	// ForceRebuild links all programs again. Images of the same content keep their
	// names all the same. Default: $FLEET_E2E_FORCE_REBUILD is 1.
	ForceRebuild bool
	// KeepNamespace leaves everything running after Close, for people to look at;
	// it is never swept. Default: $FLEET_E2E_KEEP is 1.
	KeepNamespace bool
	// AuthMode is the way to sign in. Default Callout.
	AuthMode AuthMode
	// Registry is a repository such as registry.example/team to push images to, for
	// clusters whose nodes cannot be given images. Default $FLEET_E2E_REGISTRY;
	// empty: images are loaded into the nodes.
	Registry string
	// Issuer makes the tokens of callout mode. nil: a fixture, as a Pod.
	Issuer Issuer
	// AgentTarget is where agents run. nil: Pods.
	AgentTarget AgentTarget
	// Components are further parts of the system, which run as Pods beside the others.
	Components []Component

	// Progress gets a line for each step that a person waits for, such as the building
	// of a cluster; nil: none.
	Progress io.Writer
	// Logger gets each step with its time, at level debug, and what goes wrong after
	// BringUp; nil: nobody.
	Logger *slog.Logger

	hooks hooks
}

// hooks are for the tests of this package.
type hooks struct {
	provider cluster.Provider // in place of the one that Cluster names
	uid      *int64           // Pods run as this user, as OKD would have them
	lease    time.Duration    // how long a namespace outlives its last renewal
	image    string           // agents run this image in place of theirs
	timeout  time.Duration    // in place of readyTimeout
	dir      string           // in place of this module's root, for images
}

func (o *Options) setDefaults() error {
	o.Cluster = cmp.Or(o.Cluster, os.Getenv(EnvCluster))
	if o.Cluster == "" {
		o.Cluster = "auto"
		if o.Kubeconfig != "" {
			o.Cluster = "kubeconfig"
		}
	}
	o.NumDevices = cmp.Or(o.NumDevices, 1)
	o.ForceRebuild = o.ForceRebuild || os.Getenv(EnvForceRebuild) == "1"
	o.KeepNamespace = o.KeepNamespace || os.Getenv(EnvKeep) == "1"
	o.AuthMode = cmp.Or(o.AuthMode, Callout)
	o.Registry = cmp.Or(o.Registry, os.Getenv(EnvRegistry))
	if o.Issuer == nil {
		o.Issuer = Fixture{}
	}
	if o.AgentTarget == nil {
		o.AgentTarget = Pod{}
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.hooks.lease = cmp.Or(o.hooks.lease, lease)
	o.hooks.timeout = cmp.Or(o.hooks.timeout, readyTimeout)
	switch {
	case o.AuthMode != Callout && o.AuthMode != UserPass:
		return fmt.Errorf("auth mode %q is not known: use %s or %s", o.AuthMode, Callout, UserPass)
	case o.NumDevices < 0 || o.NumDevices > MaxDevices:
		return fmt.Errorf("%d devices: the number is from 1 to %d", o.NumDevices, MaxDevices)
	}
	return nil
}

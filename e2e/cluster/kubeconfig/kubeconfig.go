// Package kubeconfig provides a cluster that somebody else runs, OKD included:
//
//	c, err := kubeconfig.New(kubeconfig.Options{Path: "/home/me/.kube/config"}).Up(ctx)
//
// Nothing is made or changed: Up looks whether the cluster answers, lets the user
// make namespaces, and takes Pods. Its nodes cannot be given images, so they pull
// them: package provider pushes to a registry first.
package kubeconfig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
)

// DefaultTimeout bounds Up where Options say nothing else.
const DefaultTimeout = 30 * time.Second

// Options say which cluster is meant.
type Options struct {
	// Path is a kubeconfig file; the cluster is that of its current context. Empty
	// means the file that kubectl reads when it is told nothing, ~/.kube/config.
	Path string

	// Timeout bounds Up; zero means DefaultTimeout.
	Timeout time.Duration
}

// Provider is a provider of a cluster that exists.
type Provider struct{ options Options }

var _ cluster.Provider = (*Provider)(nil)

// New returns a provider of the cluster that o names. It touches nothing; what is
// wrong is reported by Up.
func New(o Options) *Provider { return &Provider{options: o} }

// Name is "kubeconfig".
func (*Provider) Name() string { return "kubeconfig" }

// Up looks whether the cluster can be used, and changes nothing.
func (p *Provider) Up(ctx context.Context) (cluster.Cluster, error) {
	c, err := p.look(ctx)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig cluster: %w", err)
	}
	return c, nil
}

func (p *Provider) look(ctx context.Context) (*existing, error) {
	path := p.options.Path
	if path == "" {
		path = clientcmd.RecommendedHomeFile
	}
	// What kubectl takes as several files cannot be handed on as one.
	if list := filepath.SplitList(path); len(list) > 1 {
		return nil, fmt.Errorf("%s are %d files: make one of them with: KUBECONFIG=%[1]s kubectl config view --flatten > FILE", path, len(list))
	}
	path, err := filepath.Abs(path) // tests run in other directories
	if err != nil {
		return nil, err
	}
	timeout := p.options.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	api, err := kubeapi.Open(path)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	if err := api.MayMakeNamespaces(ctx); err != nil {
		return nil, err
	}
	nodes, err := api.AwaitNodes(ctx)
	if err != nil {
		return nil, err
	}
	return &existing{path: path, addresses: kubeapi.Reachable(ctx, kubeapi.Addresses(nodes))}, nil
}

// existing is a cluster that somebody else runs.
type existing struct {
	path      string
	addresses []string
}

func (c *existing) Kubeconfig() string         { return c.path }
func (c *existing) NodeAddresses() []string    { return c.addresses }
func (c *existing) Down(context.Context) error { return nil }

// LoadImages fails: only a registry helps.
func (c *existing) LoadImages(_ context.Context, images ...cluster.Image) error {
	if len(images) == 0 {
		return nil
	}
	return errors.New("kubeconfig cluster: the nodes of a cluster that somebody else runs cannot be given images: " +
		"name a registry that they pull from and you may push to (FLEET_E2E_REGISTRY); for the local cluster or k3d, set FLEET_E2E_CLUSTER")
}

// InEnvironment is the value of KUBECONFIG, empty where it is not set.
func InEnvironment() string { return os.Getenv(clientcmd.RecommendedConfigPathEnvVar) }

// Package k3d provides a k3d cluster (k3s in Docker containers) that every test on
// the machine shares:
//
//	c, err := k3d.New(k3d.Options{}).Up(ctx)
//
// It is made once, by whoever asks first, and stays; several processes may ask at
// once. What is done is done by the programs k3d and docker, version 5 of the former.
//
// The cluster carries a label that says who made it. One of the same name without
// the label is used, and never deleted.
package k3d

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/internal/ctr"
	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
)

// Defaults of Options.
const (
	DefaultName = "fleet-e2e"
	// DefaultTimeout leaves time to pull the k3s image once.
	DefaultTimeout = 5 * time.Minute
)

// Options say which cluster is meant. The zero value is the shared one.
type Options struct {
	// Name is the cluster's name as k3d knows it, one DNS label of at most 32
	// characters; empty means DefaultName.
	Name string

	// Dir keeps the cluster's kubeconfig and a lock; empty means harmony-fleet/k3d in
	// the user's cache directory.
	Dir string

	// Timeout bounds Up and Down each; zero means DefaultTimeout.
	Timeout time.Duration

	// Progress gets a line for each step that a person waits for; nil means none.
	Progress io.Writer

	// Logger gets the commands that are run; nil means nothing is logged.
	Logger *slog.Logger
}

var nameForm = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`)

// withDefaults returns o with every field set, or what is wrong with it.
func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if !nameForm.MatchString(o.Name) {
		return o, fmt.Errorf("k3d cluster: name %q: want a DNS label of at most 32 characters that starts with a letter", o.Name)
	}
	if o.Dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return o, errors.New("k3d cluster: no cache directory: set HOME or XDG_CACHE_HOME")
		}
		o.Dir = filepath.Join(base, "harmony-fleet", "k3d")
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Provider is the k3d provider.
type Provider struct{ options Options }

var _ cluster.Provider = (*Provider)(nil)

// New returns a provider of the cluster that o describes. It touches nothing;
// unusable options are reported by the methods.
func New(o Options) *Provider { return &Provider{options: o} }

// Name is "k3d".
func (*Provider) Name() string { return "k3d" }

// Usable returns nil where the programs are there and a Docker engine answers, or
// says what is missing.
func (p *Provider) Usable(ctx context.Context) error {
	o, err := p.options.withDefaults()
	if err != nil {
		return err
	}
	return programs{o}.check(ctx)
}

// Up returns the cluster, made or started first where that is needed.
func (p *Provider) Up(ctx context.Context) (cluster.Cluster, error) {
	o, err := p.options.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	run := programs{o}
	if err := run.check(ctx); err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx, o)
	if err != nil {
		return nil, err
	}
	defer unlock()
	found, made, err := ensure(ctx, run)
	if err == nil {
		var c *Cluster
		if c, err = connect(ctx, run, found); err == nil {
			return c, nil
		}
	}
	if made { // nothing that Up made stays after an error
		err = errors.Join(err, deleteAfterFailure(ctx, run))
	}
	return nil, err
}

// lock keeps other processes from making the cluster at the same time: of two k3d
// that make the same one, the slower undoes the work of both.
func (p *Provider) lock(ctx context.Context, o Options) (unlock func(), err error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("k3d cluster: %w", err)
	}
	unlock, err = filelock.Wait(ctx, filepath.Join(o.Dir, o.Name+".lock"))
	if err != nil {
		return nil, fmt.Errorf("k3d cluster: wait for another process that makes or deletes %s: %w", o.Name, err)
	}
	return unlock, nil
}

// ensure returns the running cluster, and whether it is this call that made it.
func ensure(ctx context.Context, run programs) (found *listed, made bool, err error) {
	found, err = run.list(ctx)
	if err != nil {
		return nil, false, err
	}
	if found != nil && !found.running() {
		fmt.Fprintf(run.Progress, "starting k3d cluster %s\n", run.Name)
		if err := run.start(ctx); err != nil {
			ours, labelErr := run.isOurs(ctx, found)
			if labelErr != nil || !ours {
				return nil, false, errors.Join(err, labelErr)
			}
			// What a killed process has left half made cannot be started.
			if err := run.delete(ctx); err != nil {
				return nil, false, err
			}
			found = nil
		}
	}
	if found == nil {
		fmt.Fprintf(run.Progress, "making k3d cluster %s, once; k3d pulls the k3s image the first time\n", run.Name)
		if err := run.create(ctx); err != nil {
			return nil, true, err
		}
		made = true
	}
	found, err = run.list(ctx)
	if err == nil && (found == nil || !found.running()) {
		err = fmt.Errorf("k3d cluster: %s does not run after it was started: look at: docker logs k3d-%[1]s-server-0", run.Name)
	}
	return found, made, err
}

// connect returns the cluster when it takes Pods.
func connect(ctx context.Context, run programs, found *listed) (*Cluster, error) {
	path := filepath.Join(run.Dir, run.Name+".kubeconfig")
	if err := run.writeKubeconfig(ctx, path); err != nil {
		return nil, err
	}
	api, err := kubeapi.Open(path)
	if err != nil {
		return nil, fmt.Errorf("k3d cluster: %w", err)
	}
	defer api.Close()
	if _, err := api.AwaitNodes(ctx); err != nil {
		return nil, fmt.Errorf("k3d cluster: %w", err)
	}
	return &Cluster{
		options:    run.Options,
		kubeconfig: path,
		nodes:      found.nodes(),
		addresses:  kubeapi.Reachable(ctx, found.addresses()),
	}, nil
}

// deleteTimeout bounds what is done after a failure, when ctx may be what failed.
const deleteTimeout = time.Minute

// deleteAfterFailure deletes what create has left. k3d itself undoes a failed
// creation, unless it is interrupted.
func deleteAfterFailure(ctx context.Context, run programs) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
	defer cancel()
	found, err := run.list(ctx)
	if err != nil || found == nil {
		return err
	}
	return run.delete(ctx)
}

// Cluster is a k3d cluster that is up.
type Cluster struct {
	options    Options // complete
	kubeconfig string
	nodes      []string // names of the containers
	addresses  []string
}

var _ cluster.Cluster = (*Cluster)(nil)

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

// NodeAddresses are the nodes' addresses in Docker's network, which this machine
// reaches where Docker runs on it, and not where Docker has a machine of its own.
func (c *Cluster) NodeAddresses() []string { return c.addresses }

// LoadImages streams images into every node, and leaves out those that are there.
func (c *Cluster) LoadImages(ctx context.Context, images ...cluster.Image) error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, node := range c.nodes {
		wg.Go(func() {
			if err := ctr.Node(programs{c.options}.ctr(node)).Load(ctx, images...); err != nil {
				errs[i] = fmt.Errorf("node %s: %w", node, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Down deletes the cluster if this provider made it, in this process or another,
// and does nothing otherwise. It is idempotent.
func (c *Cluster) Down(ctx context.Context) error { return New(c.options).Down(ctx) }

// Down deletes the cluster if this provider made it.
func (p *Provider) Down(ctx context.Context) error {
	o, err := p.options.withDefaults()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	run := programs{o}
	if err := run.check(ctx); err != nil {
		return err
	}
	unlock, err := p.lock(ctx, o)
	if err != nil {
		return err
	}
	defer unlock()
	found, err := run.list(ctx)
	if err != nil || found == nil {
		return err
	}
	if ours, err := run.isOurs(ctx, found); err != nil || !ours {
		return err
	}
	if err := run.delete(ctx); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(o.Dir, o.Name+".kubeconfig")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("k3d cluster: %w", err)
	}
	return nil
}

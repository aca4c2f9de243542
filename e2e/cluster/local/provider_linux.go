package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
)

// Provider is the local provider.
type Provider struct{ options Options }

var _ cluster.Provider = (*Provider)(nil)

// New returns a provider of the cluster that o describes. It touches nothing;
// unusable options are reported by the methods.
func New(o Options) *Provider { return &Provider{options: o} }

// Name is "local".
func (*Provider) Name() string { return "local" }

// Usable returns nil where a cluster can be started, or says what is missing. A
// start finds out more: whether its network is free, for example.
func (p *Provider) Usable() error {
	o, err := p.options.withDefaults()
	if err != nil {
		return err
	}
	if err := requireRoot(); err != nil {
		return err
	}
	_, err = inspect(o.Dir)
	return err
}

// Up returns the cluster, started first unless it is up already.
func (p *Provider) Up(ctx context.Context) (cluster.Cluster, error) {
	o, err := p.options.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cluster{options: o, layout: layout{o.Dir}, addresses: addressesIn(o.Network)}
	if err := requireRoot(); err != nil {
		return nil, err
	}
	// Building takes minutes, during which others may look and stop: the lock is
	// taken later. What is missing is said before.
	var b binaries
	if living, err := alive(c.layout); err != nil {
		return nil, err
	} else if !living {
		if _, err := inspect(o.Dir); err != nil {
			return nil, err
		}
		if b, err = build(ctx, o); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	unlock, err := lockCluster(ctx, o)
	if err != nil {
		return nil, err
	}
	defer unlock()

	living, err := alive(c.layout)
	if err != nil {
		return nil, err
	}
	if living {
		s, err := readStatus(c.layout)
		if err == nil && (s.Name != o.Name || s.Network != o.Network) {
			return nil, fmt.Errorf("local cluster: the one in %s has the name %s and the network %s: use these, or another directory, or take it down first", o.Dir, s.Name, s.Network)
		}
		// A supervisor whose starter was killed ends by itself, a moment later.
		err = c.awaitReady(ctx)
		if err == nil {
			if err := allowInsecure(c.layout, o.InsecureRegistries); err != nil {
				return nil, err
			}
			return c, nil
		}
		if !errors.Is(err, errSupervisorEnded) {
			return nil, fmt.Errorf("local cluster: it is up and not ready: %w: take it down (fleet cluster down) and up again%s", err, c.trouble())
		}
	}
	if b.kube == "" { // it was up a moment ago
		if b, err = build(ctx, o); err != nil {
			return nil, err
		}
	}
	if err := c.start(ctx, b); err != nil {
		err = fmt.Errorf("%w%s", err, c.trouble())
		// The caller's context may be what ended the start.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		return nil, errors.Join(err, killSupervisor(ctx, c.layout), clearTraces(ctx, o))
	}
	return c, nil
}

func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("local cluster: it needs root: run this with sudo, or name a cluster you have with a kubeconfig")
	}
	return nil
}

// lockCluster keeps other processes from starting or stopping the cluster.
func lockCluster(ctx context.Context, o Options) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(o.Dir), 0o755); err != nil {
		return nil, fmt.Errorf("local cluster: %w", err)
	}
	unlock, err = filelock.Wait(ctx, o.Dir+".lock")
	if err != nil {
		return nil, fmt.Errorf("local cluster: another process is starting or stopping %s: %w: try again when it is done", o.Dir, err)
	}
	return unlock, nil
}

// start makes the cluster. What it leaves when it fails, clearTraces removes.
func (c *Cluster) start(ctx context.Context, b binaries) error {
	o := c.options
	begin := time.Now()
	step := func(what string) { o.Logger.Debug(what, "after", time.Since(begin)) }
	if err := clearTraces(ctx, o); err != nil {
		return err
	}
	m, err := inspect(o.Dir)
	if err != nil {
		return err
	}
	if err := checkNetwork(o); err != nil { // not earlier: what was in the way may have been our own
		return err
	}
	if err := makeCgroups(o.Name); err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	for _, dir := range []string{"bin", "logs", "var-log"} {
		if err := os.MkdirAll(c.layout.path(dir), 0o755); err != nil {
			return fmt.Errorf("local cluster: %w", err)
		}
	}
	if err := linkOrCopy(b.kube, c.layout.kube()); err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	if err := writePKI(o.Dir, o.Name, c.addresses); err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	if err := writeConfig(o, c.addresses, m); err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	if err := allowInsecure(c.layout, o.InsecureRegistries); err != nil {
		return err
	}
	lock, err := filelock.Open(supervisorLock(c.layout))
	if err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	defer lock.Close()
	step("configuration written")
	err = startSupervisor(ctx, order{
		Dir: o.Dir, Name: o.Name, Link: nodeLink(o.Name), Addresses: c.addresses,
		Components: components(o, c.addresses, m),
	}, lock)
	if err != nil {
		return err
	}
	step("supervisor started")
	if err := openEgress(ctx, c.layout, o.Name, c.addresses); err != nil {
		return fmt.Errorf("local cluster: let the node reach the network: %w", err)
	}
	pause, err := image.FromBinary(image.Options{}, pauseName, b.pause)
	if err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	loaded := make(chan error, 1)
	go func() { loaded <- c.loadPause(ctx, pause) }()
	err = c.awaitReady(ctx)
	if err := errors.Join(err, <-loaded); err != nil {
		return fmt.Errorf("local cluster: it does not get ready: %w", err)
	}
	step("ready")
	return nil
}

// linkOrCopy gives a file a second name, or copies it to another file system.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// trouble says which components are not running, for the message of a failed start.
func (c *Cluster) trouble() string {
	var b strings.Builder
	for _, s := range readComponents(c.layout) {
		if s.PID == 0 || s.Restarts > 2 {
			fmt.Fprintf(&b, "\n  %s (%d restarts, %s): %s", s.Name, s.Restarts, s.LastExit, lastLines(c.layout.log(s.Name), 2))
		}
	}
	if supervisor := lastLines(c.layout.log("supervisor"), 2); supervisor != "" && supervisor != "no log" {
		fmt.Fprintf(&b, "\n  supervisor: %s", supervisor)
	}
	return b.String()
}

// Down takes the cluster down and removes every trace of it. It is idempotent.
func (p *Provider) Down(ctx context.Context) error {
	o, err := p.options.withDefaults()
	if err != nil {
		return err
	}
	if err := requireRoot(); err != nil {
		return err
	}
	unlock, err := lockCluster(ctx, o)
	if err != nil {
		return err
	}
	defer unlock()
	if err := killSupervisor(ctx, layout{o.Dir}); err != nil {
		return err
	}
	return clearTraces(ctx, o)
}

// Status says what is known of the cluster. It waits for nothing longer than 2 s.
func (p *Provider) Status(ctx context.Context) (Status, error) {
	o, err := p.options.withDefaults()
	if err != nil {
		return Status{}, err
	}
	c := &Cluster{options: o, layout: layout{o.Dir}, addresses: addressesIn(o.Network)}
	result := Status{State: StateDown, Name: o.Name, Dir: o.Dir}
	if _, err := os.Stat(o.Dir); errors.Is(err, os.ErrNotExist) {
		return result, nil
	}
	living, err := alive(c.layout)
	if err != nil {
		return Status{}, err
	}
	s, err := readStatus(c.layout)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Status{}, fmt.Errorf("local cluster: %w", err)
	}
	if err == nil {
		result.Name, result.Started = s.Name, s.Started
		c.addresses = addressesIn(s.Network)
	}
	if !living {
		result.State = StateKilled
		return result, nil
	}
	result.State, result.PID = StateStarting, s.PID
	result.Kubeconfig, result.Node = c.layout.kubeconfig(), c.addresses.Node.String()
	result.Components = readComponents(c.layout)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if result.Version, err = c.look(ctx); err == nil {
		result.State = StateUp
	}
	return result, nil
}

// Running returns the cluster if it is up, without starting it.
func (p *Provider) Running(ctx context.Context) (*Cluster, error) {
	s, err := p.Status(ctx)
	if err != nil {
		return nil, err
	}
	if s.State != StateUp {
		return nil, fmt.Errorf("local cluster: the one in %s is %s: start it with: fleet cluster up", s.Dir, s.State)
	}
	o, err := p.options.withDefaults()
	if err != nil {
		return nil, err
	}
	recorded, err := readStatus(layout{o.Dir})
	if err != nil {
		return nil, fmt.Errorf("local cluster: %w", err)
	}
	o.Name, o.Network = recorded.Name, recorded.Network
	return &Cluster{options: o, layout: layout{o.Dir}, addresses: addressesIn(o.Network)}, nil
}

// Cluster is a local cluster that is up.
type Cluster struct {
	options   Options // complete
	layout    layout
	addresses addresses
}

var _ cluster.Cluster = (*Cluster)(nil)

// Kubeconfig is the path of the administrator's kubeconfig, which only root can
// read.
func (c *Cluster) Kubeconfig() string { return c.layout.kubeconfig() }

// NodeAddresses is the node's address on the link to this machine.
func (c *Cluster) NodeAddresses() []string { return []string{c.addresses.Node.String()} }

// Down takes the cluster down, whoever started it.
func (c *Cluster) Down(ctx context.Context) error { return New(c.options).Down(ctx) }

// Kubectl returns the command that runs kubectl on this cluster with args. kubectl
// is built the first time.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (*exec.Cmd, error) {
	kubectl, err := buildKubectl(ctx, c.options)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return cmd, nil
}

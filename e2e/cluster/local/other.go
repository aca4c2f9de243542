//go:build !linux

package local

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"runtime"

	"github.com/harmony-fleet/fleet/e2e/cluster"
)

// Provider is the local provider, which this operating system cannot have.
type Provider struct{}

// Cluster is a local cluster; there is none here.
type Cluster struct{ cluster.Cluster }

var errNotHere = errors.New("the local cluster needs Linux, and this is " + runtime.GOOS + ": name a cluster you have with a kubeconfig, or use k3d")

// New returns a provider whose methods fail.
func New(Options) *Provider { return &Provider{} }

// KubeBinary fails.
func KubeBinary(context.Context, Options) (string, error) { return "", errNotHere }

// Name is "local".
func (*Provider) Name() string { return "local" }

// Usable says that there is none here.
func (*Provider) Usable() error { return errNotHere }

// Up fails.
func (*Provider) Up(context.Context) (cluster.Cluster, error) { return nil, errNotHere }

// Down fails.
func (*Provider) Down(context.Context) error { return errNotHere }

// Status fails.
func (*Provider) Status(context.Context) (Status, error) { return Status{}, errNotHere }

// Running fails.
func (*Provider) Running(context.Context) (*Cluster, error) { return nil, errNotHere }

// LoadArchive fails.
func (*Cluster) LoadArchive(context.Context, io.Reader) error { return errNotHere }

// Kubectl fails.
func (*Cluster) Kubectl(context.Context, ...string) (*exec.Cmd, error) { return nil, errNotHere }

// Package provider chooses where the cluster comes from that the end-to-end tests
// run in:
//
//	p, err := provider.Select(ctx, provider.Options{Kind: "auto"})
//	if err != nil { … }               // says what each provider would need
//	c, err := p.Up(ctx)
//
// The kinds are
//
//	kubeconfig  a cluster that somebody else runs, OKD included
//	k3d         a k3d cluster that all tests on the machine share
//	local       a Kubernetes on this machine, from nothing: Linux, root, containerd
//	auto        the first of these that can be had here
package provider

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/k3d"
	"github.com/harmony-fleet/fleet/e2e/cluster/kubeconfig"
	"github.com/harmony-fleet/fleet/e2e/cluster/local"
)

// Kinds of providers.
const (
	Auto       = "auto"
	Kubeconfig = "kubeconfig"
	K3d        = "k3d"
	Local      = "local"
)

// Kinds lists them.
var Kinds = []string{Auto, Kubeconfig, K3d, Local}

// Options say which cluster is wanted. The zero value means whatever there is.
type Options struct {
	// Kind is one of Kinds; empty means Auto.
	Kind string

	// Kubeconfig is a kubeconfig file, whose current context counts; empty means
	// that of the environment variable KUBECONFIG and, where Kind is Kubeconfig, then
	// ~/.kube/config. Auto does not go on to that last file: the cluster that a
	// person happens to work with is no place for tests, unless they say so.
	Kubeconfig string

	// Registry is a registry, or a repository in one ("registry.example/team"),
	// that the cluster pulls images from; empty means none, and images are given to
	// the nodes, which a cluster by kubeconfig does not allow. Images are pushed
	// to it under their own names, so these must begin with it: build them with
	// image.Options.Host set to the same.
	//
	// Where the registry is an address of a private network it is spoken to by plain
	// HTTP, and the local cluster is told to do so as well.
	Registry string

	// Local describes the local cluster; the zero value is the shared one. Its
	// Progress and Logger are those of these Options.
	Local local.Options

	// K3d describes the k3d cluster; the zero value is the shared one. Its Progress
	// and Logger are those of these Options.
	K3d k3d.Options

	// Progress gets a line for each step that a person waits for; nil means none.
	Progress io.Writer

	// Logger gets what happened in detail; nil means nothing is logged.
	Logger *slog.Logger
}

// Select returns the provider that o asks for. With Auto it looks what is possible
// here, which takes a moment where a Docker engine does not answer; where nothing
// is, the error says what each would need. A provider that was named is returned
// as it is, and its Up reports what it lacks.
func Select(ctx context.Context, o Options) (cluster.Provider, error) {
	if o.Kind == "" {
		o.Kind = Auto
	}
	if !slices.Contains(Kinds, o.Kind) {
		return nil, fmt.Errorf("cluster provider %q: want one of %s", o.Kind, strings.Join(Kinds, ", "))
	}
	if o.Kubeconfig == "" {
		o.Kubeconfig = kubeconfig.InEnvironment()
	}
	o.K3d.Progress, o.K3d.Logger = o.Progress, o.Logger
	o.Local.Progress, o.Local.Logger = o.Progress, o.Logger
	var pushTo *registry
	if o.Registry != "" {
		r, err := newRegistry(o.Registry)
		if err != nil {
			return nil, err
		}
		if r.plainHTTP() {
			o.Local.InsecureRegistries = append(slices.Clip(o.Local.InsecureRegistries), r.host())
		}
		pushTo = r
	}
	p, err := choose(ctx, o)
	if err != nil || pushTo == nil {
		return p, err
	}
	return pushing{p, pushTo}, nil
}

func choose(ctx context.Context, o Options) (cluster.Provider, error) {
	existing := kubeconfig.New(kubeconfig.Options{Path: o.Kubeconfig})
	inDocker, here := k3d.New(o.K3d), local.New(o.Local)
	switch o.Kind {
	case Kubeconfig:
		return existing, nil
	case K3d:
		return inDocker, nil
	case Local:
		return here, nil
	}
	if o.Kubeconfig != "" {
		return existing, nil
	}
	k3dErr := inDocker.Usable(ctx)
	if k3dErr == nil {
		return inDocker, nil
	}
	localErr := here.Usable()
	if localErr == nil {
		return here, nil
	}
	return nil, fmt.Errorf("no cluster can be had here. One of these helps:\n"+
		"  kubeconfig: name a cluster you have with KUBECONFIG\n"+
		"  k3d:        %w\n"+
		"  local:      %w",
		trimmed{k3dErr}, trimmed{localErr})
}

// trimmed is an error without the name of its cluster in front, which stands in the
// list already.
type trimmed struct{ error }

func (t trimmed) Error() string {
	_, rest, found := strings.Cut(t.error.Error(), " cluster: ")
	if !found {
		return t.error.Error()
	}
	return rest
}

func (t trimmed) Unwrap() error { return t.error }

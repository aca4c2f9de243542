package local

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Defaults of Options.
const (
	// DefaultDir is where a cluster lives while it is up.
	DefaultDir = "/var/lib/harmony-fleet/cluster"
	// DefaultName is the name of a cluster.
	DefaultName = "fleet"
	// DefaultNetwork holds the addresses of node, Pods and Services.
	DefaultNetwork = "10.213.0.0/16"
	// DefaultStartTimeout bounds a start, the building of the binaries apart.
	DefaultStartTimeout = time.Minute
)

// Options say which cluster is meant. The zero value is the one cluster that
// everybody on the machine shares; two clusters at once need different Dir, Name
// and Network. What a cluster was started with holds until it is down.
type Options struct {
	// Dir is the cluster's own directory, absolute; empty means DefaultDir. It is
	// made by Up and removed, with all that is in it, by Down. It must be on a
	// file system that can carry overlayfs (ext4 and xfs can, overlayfs itself
	// cannot).
	Dir string

	// Name is one DNS label of at most 11 characters; empty means DefaultName. The
	// node has this name, the network link to it is hf-<name>, its cgroups are
	// below /harmony-fleet/<name>.
	Name string

	// Network is an IPv4 /16 that nothing else on the machine uses; the zero value
	// means DefaultNetwork. The link to the node takes x.y.0.0/24, Pods
	// x.y.64.0/18 and Services x.y.128.0/18.
	Network netip.Prefix

	// CacheDir keeps the built binaries, some 150 MB; empty means harmony-fleet in
	// the user's cache directory ($XDG_CACHE_HOME, or ~/.cache).
	CacheDir string

	// Source is the directory of the Go module that the binaries are built from,
	// e2e/cluster/local/kube of this repository; empty means the one beside this
	// package's source, or in the module of the working directory.
	Source string

	// InsecureRegistries are registries, as host:port, that the node pulls images from
	// by plain HTTP; nil means none. Those of an Up that finds the cluster running
	// hold for it as well.
	InsecureRegistries []string

	// StartTimeout bounds a start, the building of the binaries apart; zero means
	// DefaultStartTimeout.
	StartTimeout time.Duration

	// Progress gets a line for each step that a person waits for; nil means none.
	Progress io.Writer

	// Logger gets what happened in detail; nil means nothing is logged.
	Logger *slog.Logger
}

// nameForm leaves room in the 15 characters of a link's name for "hf-" and for
// one more, which the name of the link's far end needs until it is moved.
var nameForm = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,9}[a-z0-9])?$`)

// registryForm is that of a registry's name, which becomes the name of a directory.
var registryForm = regexp.MustCompile(`^[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?(:[0-9]{1,5})?$`)

// withDefaults returns o with every field set, or what is wrong with it.
func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if !filepath.IsAbs(o.Dir) || filepath.Clean(o.Dir) != o.Dir || o.Dir == "/" {
		return o, fmt.Errorf("local cluster: directory %q: want a clean absolute path such as %s", o.Dir, DefaultDir)
	}
	// A unix socket's path has 108 bytes; the longest here is containerd's.
	if limit := 70; len(o.Dir) > limit {
		return o, fmt.Errorf("local cluster: directory %q is longer than the %d bytes that leave room for socket names: choose a shorter one", o.Dir, limit)
	}
	if o.Name == "" {
		o.Name = DefaultName
	}
	if !nameForm.MatchString(o.Name) {
		return o, fmt.Errorf("local cluster: name %q: want a DNS label of at most 11 characters that starts with a letter", o.Name)
	}
	if !o.Network.IsValid() {
		o.Network = netip.MustParsePrefix(DefaultNetwork)
	}
	if !o.Network.Addr().Is4() || o.Network.Bits() != 16 || o.Network != o.Network.Masked() {
		return o, fmt.Errorf("local cluster: network %s: want an IPv4 /16 such as %s", o.Network, DefaultNetwork)
	}
	if o.CacheDir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return o, errors.New("local cluster: no cache directory: set HOME or XDG_CACHE_HOME")
		}
		o.CacheDir = filepath.Join(base, "harmony-fleet")
	}
	for _, host := range o.InsecureRegistries {
		if !registryForm.MatchString(host) {
			return o, fmt.Errorf("local cluster: registry %q: want host:port", host)
		}
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = DefaultStartTimeout
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// addresses are those that a cluster's parts have, all made from one /16.
type addresses struct {
	Network  netip.Prefix // everything
	Host     netip.Addr   // this machine's end of the link
	Node     netip.Addr   // the node's end: API server, kubelet, NodePorts, DNS
	Pods     netip.Prefix
	Services netip.Prefix
	API      netip.Addr // the kubernetes Service
	DNS      netip.Addr // the kube-dns Service
}

// linkBits is the prefix length of the link between this machine and the node.
const linkBits = 24

// apiPort is where the API server listens, in the node's own network namespace.
const apiPort = 6443

func addressesIn(network netip.Prefix) addresses {
	at := func(third, fourth byte) netip.Addr {
		a := network.Addr().As4()
		a[2], a[3] = third, fourth
		return netip.AddrFrom4(a)
	}
	return addresses{
		Network:  network,
		Host:     at(0, 1),
		Node:     at(0, 2),
		Pods:     netip.PrefixFrom(at(64, 0), 18),
		Services: netip.PrefixFrom(at(128, 0), 18),
		API:      at(128, 1),
		DNS:      at(128, 10),
	}
}

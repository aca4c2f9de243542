// Package config reads the configuration file of fleet-operator.
//
//	cfg, err := config.Load("/etc/fleet-operator/config.toml")
package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/tomlconfig"
)

// Config is the configuration, in TOML; docs/operator.md explains each key. It is
// strict: an unknown key is an error.
type Config struct {
	// Provision makes the streams and buckets, or brings them to their configuration,
	// whenever the operator connects. Default false.
	Provision bool    `toml:"provision"`
	Streams   Streams `toml:"streams"`

	NATS        NATS               `toml:"nats"`
	Credentials credentials.Config `toml:"credentials"`
	Kubernetes  Kubernetes         `toml:"kubernetes"`
	Metrics     Listener           `toml:"metrics"`
	Health      Listener           `toml:"health"`
	Log         tomlconfig.Log     `toml:"log"`
}

// Streams are the limits that depend on the size of the broker; with provision only.
type Streams struct {
	Replicas        int                 `toml:"replicas"`          // default 1
	AuditPerSubject int64               `toml:"audit_per_subject"` // default 1000
	AuditMaxAge     tomlconfig.Duration `toml:"audit_max_age"`     // default: none
}

// NATS is where the broker is.
type NATS struct {
	URL      tomlconfig.URLs `toml:"url"`      // one or a list; default nats://127.0.0.1:4222
	Insecure bool            `toml:"insecure"` // a secret over plaintext to a host that is not loopback
	TLS      natsconn.TLS    `toml:"tls"`
}

// Kubernetes is where the resources are.
type Kubernetes struct {
	// Kubeconfig is a file; empty: the ServiceAccount of the Pod.
	Kubeconfig string `toml:"kubeconfig"`
	// Namespace owns the Devices, and holds the Lease of the leader. Default: that of
	// the Pod.
	Namespace string `toml:"namespace"`
	// Namespaces are those whose Deployments are acted on. Default: Namespace alone.
	Namespaces []string `toml:"namespaces"`
	// LeaderElection lets one of several replicas act. Default true.
	LeaderElection *bool `toml:"leader_election"`
}

// Listener is an address that is served by HTTP.
type Listener struct {
	// Listen is host:port, or "off". Default ":8080" for metrics, ":8081" for health.
	Listen string `toml:"listen"`
}

// podNamespace is where the kubelet writes the namespace of a Pod.
const podNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Load reads and checks a configuration file. What is absent has its default in the
// result.
func Load(file string) (Config, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("operator configuration: %w", err)
	}
	c, err := Parse(raw, podNamespace)
	if err != nil {
		return Config{}, fmt.Errorf("operator configuration %s: %w", file, err)
	}
	return c, nil
}

// Parse is Load for bytes. namespaceFile holds the default of kubernetes.namespace.
func Parse(raw []byte, namespaceFile string) (Config, error) {
	c, err := tomlconfig.Decode[Config](raw)
	if err != nil {
		return Config{}, err
	}
	if c.Kubernetes.Namespace == "" {
		own, err := os.ReadFile(namespaceFile)
		if err != nil {
			return Config{}, errors.New("kubernetes.namespace: missing: this is no Pod that could tell its own; give the namespace that owns the devices")
		}
		c.Kubernetes.Namespace = strings.TrimSpace(string(own))
	}
	if len(c.Kubernetes.Namespaces) == 0 {
		c.Kubernetes.Namespaces = []string{c.Kubernetes.Namespace}
	}
	if c.Kubernetes.LeaderElection == nil {
		yes := true
		c.Kubernetes.LeaderElection = &yes
	}
	if c.Metrics.Listen == "" {
		c.Metrics.Listen = ":8080"
	}
	if c.Health.Listen == "" {
		c.Health.Listen = ":8081"
	}
	return c, c.validate()
}

// validate names every key that is wrong, all in one error.
func (c Config) validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if !c.Provision && c.Streams != (Streams{}) {
		bad("streams", "is for provision = true, which is not set")
	}
	if n := c.Streams.Replicas; n < 0 || n > 5 {
		bad("streams.replicas", "%d is not 1 to 5", n)
	}
	if c.Streams.AuditPerSubject < 0 || c.Streams.AuditMaxAge < 0 {
		bad("streams", "a limit is negative")
	}
	for _, u := range c.NATS.URL {
		if _, err := natsconn.CheckURL(u, c.NATS.TLS.CA != "", true, c.NATS.Insecure); err != nil {
			bad("nats.url", "%v", err)
		}
	}
	if (c.NATS.TLS.Cert == "") != (c.NATS.TLS.Key == "") {
		bad("nats.tls", "cert and key go together")
	}
	if err := c.Credentials.Validate(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range append([]string{c.Kubernetes.Namespace}, c.Kubernetes.Namespaces...) {
		if why := validation.IsDNS1123Label(name); len(why) > 0 {
			bad("kubernetes.namespace", "%.80q is not the name of a namespace: %s", name, why[0])
		}
	}
	for key, l := range map[string]Listener{"metrics.listen": c.Metrics, "health.listen": c.Health} {
		if _, _, err := net.SplitHostPort(l.Listen); l.Listen != "off" && err != nil {
			bad(key, "%.80q is not host:port or off", l.Listen)
		}
	}
	if c.Metrics.Listen == c.Health.Listen && c.Health.Listen != "off" && !strings.HasSuffix(c.Health.Listen, ":0") {
		bad("health.listen", "is that of metrics too")
	}
	if err := c.Log.CheckLevel(); err != nil {
		bad("log.level", "%v", err)
	}
	if err := c.Log.CheckFormat(); err != nil {
		bad("log.format", "%v", err)
	}
	return errors.Join(errs...)
}

package local

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	clusterDomain = "cluster.local"
	dnsReadyPort  = 8181
)

// layout says where things are in a cluster's directory.
type layout struct{ dir string }

func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}
func (l layout) kube() string             { return l.path("bin", "kube") }
func (l layout) kubeconfig() string       { return l.path("kubeconfig") }
func (l layout) containerdSocket() string { return l.path("containerd.sock") }
func (l layout) registries() string       { return l.path("registries") }
func (l layout) log(component string) string {
	return l.path("logs", component+".log")
}

// machine is what a start needs to know of the machine it is on.
type machine struct {
	containerd string // path of the binary
	runc       string
	cniDir     string // where the CNI plugins are
	resolvers  []netip.Addr
}

// writeConfig writes the configuration file of every component.
func writeConfig(o Options, at addresses, m machine) error {
	l := layout{o.Dir}
	kubelet, err := kubeletConfig(o, at, l)
	if err != nil {
		return err
	}
	proxy, err := proxyConfig(o, at, l)
	if err != nil {
		return err
	}
	network, err := cniConfig(o, at)
	if err != nil {
		return err
	}
	for path, content := range map[string]string{
		"containerd.toml":       containerdConfig(l, m),
		"cni/10-fleet.conflist": network,
		"kubelet.json":          kubelet,
		"kube-proxy.json":       proxy,
		"Corefile":              corefile(l, m.resolvers),
		"resolv.conf":           resolvConf(m.resolvers),
	} {
		path = l.path(path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	return nil
}

// containerdConfig is in the form of version 2, which containerd 1.6 to 2.x read.
//
// AppArmor is off because its profile would be loaded into the machine's kernel
// and stay there. The score for the out-of-memory killer is restricted because a
// machine may withhold CAP_SYS_RESOURCE.
func containerdConfig(l layout, m machine) string {
	return fmt.Sprintf(`version = 2
root = %[1]q
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = %[2]q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[3]q
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = %[4]q
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[5]q
    conf_dir = %[6]q
    max_conf_num = 1

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %[7]q
`, l.path("containerd"), l.containerdSocket(), pauseRef, m.runc, m.cniDir, l.path("cni"), l.registries())
}

// allowInsecure lets containerd pull from registries by plain HTTP. It looks here
// whenever it pulls, so this works while it runs.
func allowInsecure(l layout, registries []string) error {
	for _, host := range registries {
		dir := filepath.Join(l.registries(), host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("local cluster: allow registry: %w", err)
		}
		url := "http://" + host
		content := fmt.Sprintf("server = %q\n\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", url)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o644); err != nil {
			return fmt.Errorf("local cluster: allow registry: %w", err)
		}
	}
	return nil
}

// cniConfig gives each Pod a routed link of its own. There is no bridge: with one,
// Pods reach Services on their own node only where the br_netfilter module is
// loaded, and a bridge has to learn and to forward first.
func cniConfig(o Options, at addresses) (string, error) {
	return encode(map[string]any{
		"cniVersion": "0.4.0",
		"name":       "harmony-fleet-" + o.Name,
		"plugins": []any{
			map[string]any{
				"type": "ptp",
				"ipam": map[string]any{
					"type":    "host-local",
					"dataDir": "/run/cni",
					"ranges":  []any{[]any{map[string]any{"subnet": at.Pods.String()}}},
					"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	})
}

// kubeletConfig turns off what needs the node to be a whole machine of its own:
// limits for all Pods together, eviction by disk space, and what a machine without
// CAP_SYS_RESOURCE does not allow (KubeletInUserNamespace lets it fail).
func kubeletConfig(o Options, at addresses, l layout) (string, error) {
	return encode(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",

		"address":           at.Node.String(),
		"healthzPort":       0,
		"readOnlyPort":      0,
		"tlsCertFile":       l.path("pki", "kubelet.crt"),
		"tlsPrivateKeyFile": l.path("pki", "kubelet.key"),
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": l.path("pki", "ca.crt")},
		},
		"authorization": map[string]any{"mode": "Webhook"},

		"containerRuntimeEndpoint": "unix://" + l.containerdSocket(),
		"clusterDomain":            clusterDomain,
		"clusterDNS":               []string{at.DNS.String()},
		"resolvConf":               l.path("resolv.conf"),

		"failCgroupV1":                  false,
		"cgroupDriver":                  "cgroupfs",
		"cgroupRoot":                    cgroupPath(o.Name),
		"cgroupsPerQOS":                 true,
		"enforceNodeAllocatable":        []string{},
		"failSwapOn":                    false,
		"localStorageCapacityIsolation": false,
		"oomScoreAdj":                   0,
		"featureGates":                  map[string]any{"KubeletInUserNamespace": true},
		"evictionHard":                  map[string]any{"memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent":   100, // an image that was loaded cannot be pulled again
		"maxPods":                       250,
		"kubeAPIQPS":                    200,
		"kubeAPIBurst":                  400,
		"eventRecordQPS":                0, // no limit
		"registryPullQPS":               0, // no limit
		"serializeImagePulls":           false,
		"containerLogMaxSize":           "50Mi",
		"containerLogMaxFiles":          2,
		"shutdownGracePeriod":           "0s",
		"volumePluginDir":               l.path("volume-plugins"),
		"nodeStatusReportFrequency":     "1m",
		"configMapAndSecretChangeDetectionStrategy": "Watch",
	})
}

// proxyConfig leaves the machine's connection tracking alone, and syncs rules as
// soon as a Service changes (a minSyncPeriod of 0 would mean 1 s here).
func proxyConfig(o Options, at addresses, l layout) (string, error) {
	return encode(map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "iptables",
		"hostnameOverride":   o.Name,
		"clusterCIDR":        at.Pods.String(),
		"bindAddress":        at.Node.String(),
		"healthzBindAddress": "127.0.0.1:10256",
		"metricsBindAddress": "127.0.0.1:10249",
		"oomScoreAdj":        0,
		"clientConnection":   map[string]any{"kubeconfig": l.path("kubeconfigs", "kube-proxy"), "qps": 200, "burst": 400},
		"iptables":           map[string]any{"minSyncPeriod": "1ms", "syncPeriod": "1m", "localhostNodePorts": false},
		"conntrack":          map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
}

func encode(v any) (string, error) {
	content, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode configuration: %w", err)
	}
	return string(content) + "\n", nil
}

// corefile answers for the cluster's own names without a cache, since a test that
// makes a Service looks it up at once, and asks the machine's resolvers for the rest.
func corefile(l layout, resolvers []netip.Addr) string {
	var b strings.Builder
	fmt.Fprintf(&b, `.:53 {
    errors
    ready :%d
    kubernetes %s in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }
`, dnsReadyPort, clusterDomain, l.path("kubeconfigs", "coredns"))
	if len(resolvers) > 0 {
		b.WriteString("    forward .")
		for _, r := range resolvers {
			fmt.Fprintf(&b, " %s", netip.AddrPortFrom(r, 53))
		}
		fmt.Fprintf(&b, `
    cache 30 {
        disable success %[1]s
        disable denial %[1]s
    }
`, clusterDomain)
	}
	b.WriteString("    loadbalance\n}\n")
	return b.String()
}

// resolvConf is what Pods with dnsPolicy Default get.
func resolvConf(resolvers []netip.Addr) string {
	var b strings.Builder
	for _, r := range resolvers {
		fmt.Fprintf(&b, "nameserver %s\n", r)
	}
	return b.String()
}

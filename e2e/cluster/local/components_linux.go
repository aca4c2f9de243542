package local

import (
	"fmt"
	"strings"
)

// component is one process of the cluster, as the supervisor starts it.
type component struct {
	Name string   `json:"name"`
	Path string   `json:"path"`
	Args []string `json:"args"`
	Env  []string `json:"env"` // the whole environment

	// Yields says that it gets the processor after the others until the API server
	// serves, which is what all wait for.
	Yields bool `json:"yields"`

	await []string // what must be there before it goes to work
}

const etcdAddress = "127.0.0.1:2379"

// searchPath is where components find programs such as mount and iptables.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// components returns the processes of the cluster. They all start at once, and go
// to work when what they need is there.
//
// etcd talks plain HTTP: the address is the loopback of the node's own network
// namespace, which Pods are not in. It does not sync to disk, since a cluster is
// not meant to survive the machine, and with one member elections are a formality
// that the default intervals would make a second long.
func components(o Options, at addresses, m machine) []component {
	l := layout{o.Dir}
	pki := func(name string) string { return l.path("pki", name) }
	kubeconfig := func(name string) string { return l.path("kubeconfigs", name) }
	api := fmt.Sprintf("%s:%d", at.Node, apiPort)
	serving := []string{"tls " + api}
	const peer = "http://127.0.0.1:2380"

	list := []component{
		{Name: "etcd", Args: []string{
			"--name=" + o.Name,
			"--data-dir=" + l.path("etcd"),
			"--listen-client-urls=http://" + etcdAddress,
			"--advertise-client-urls=http://" + etcdAddress,
			"--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=" + o.Name + "=" + peer,
			"--heartbeat-interval=10",
			"--election-timeout=50",
			"--unsafe-no-fsync",
			"--log-level=warn",
		}},
		{Name: "containerd", Path: m.containerd, Args: []string{
			"--config=" + l.path("containerd.toml"),
			"--log-level=warn",
		}},
		{Name: "kube-apiserver", await: []string{"tcp " + etcdAddress}, Args: []string{
			"--advertise-address=" + at.Node.String(),
			fmt.Sprintf("--secure-port=%d", apiPort),
			"--etcd-servers=http://" + etcdAddress,
			"--service-cluster-ip-range=" + at.Services.String(),
			"--allow-privileged=true",
			"--authorization-mode=Node,RBAC",
			// Without this a node carries a taint until a controller has seen that it
			// is ready, 1.4 s later.
			"--disable-admission-plugins=TaintNodesByCondition",
			"--client-ca-file=" + pki("ca.crt"),
			"--tls-cert-file=" + pki("apiserver.crt"),
			"--tls-private-key-file=" + pki("apiserver.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"),
			"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"),
			"--kubelet-client-key=" + pki("apiserver-kubelet.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
			"--service-account-key-file=" + pki("sa.pub"),
			"--service-account-signing-key-file=" + pki("sa.key"),
			"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy.crt"),
			"--proxy-client-key-file=" + pki("front-proxy.key"),
			"--enable-aggregator-routing=true",
			"--profiling=false",
		}},
		// It looks for a healthy API server once a second.
		{Name: "kube-controller-manager", Yields: true, await: []string{"https " + api + "/healthz"}, Args: []string{
			"--kubeconfig=" + kubeconfig("kube-controller-manager"),
			"--secure-port=0",
			"--leader-elect=false",
			"--allocate-node-cidrs=false",
			"--flex-volume-plugin-dir=" + l.path("volume-plugins"),
			"--root-ca-file=" + pki("ca.crt"),
			"--service-account-private-key-file=" + pki("sa.key"),
			"--cluster-signing-cert-file=" + pki("ca.crt"),
			"--cluster-signing-key-file=" + pki("ca.key"),
			"--kube-api-qps=500",
			"--kube-api-burst=1000",
			"--profiling=false",
		}},
		{Name: "kube-scheduler", Yields: true, await: serving, Args: []string{
			"--kubeconfig=" + kubeconfig("kube-scheduler"),
			"--secure-port=0",
			"--leader-elect=false",
			"--kube-api-qps=500",
			"--kube-api-burst=1000",
			"--profiling=false",
		}},
		// A kubelet that finds no container runtime gives up at once. It has much to do
		// before it needs the API server.
		{Name: "kubelet", Yields: true, await: []string{"unix " + l.containerdSocket()}, Args: []string{
			"--config=" + l.path("kubelet.json"),
			"--kubeconfig=" + kubeconfig("kubelet"),
			"--hostname-override=" + o.Name,
			"--node-ip=" + at.Node.String(),
			"--root-dir=" + l.path("kubelet"),
		}},
		{Name: "kube-proxy", Yields: true, await: serving, Args: []string{"--config=" + l.path("kube-proxy.json")}},
		{Name: "coredns", Yields: true, await: serving, Args: []string{"-conf=" + l.path("Corefile")}},
	}
	for i := range list {
		c := &list[i]
		c.Env = []string{"PATH=" + searchPath}
		if c.Path == "" {
			c.Path, c.Args = l.kube(), append([]string{c.Name}, c.Args...)
			c.Env = append(c.Env, "GOGC=200", "KUBE_AWAIT="+strings.Join(c.await, ","))
		}
	}
	return list
}

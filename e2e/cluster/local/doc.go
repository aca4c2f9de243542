// Package local provides a real Kubernetes on a bare Linux machine: it needs root,
// containerd, runc, the CNI plugins and iptables, and no Docker, no registry and no
// image from anywhere.
//
//	c, err := local.New(local.Options{}).Up(ctx)
//
// The control plane, kubelet, kube-proxy and CoreDNS come from one binary that is
// built once from the Go module in the folder kube and kept in the user's cache.
//
// # How it is contained
//
// A node is one supervisor process with everything else below it, and it has
// namespaces of its own: process ids, mounts, network, IPC and host name. The
// supervisor is process 1 in there. So the kernel does what a list of things to
// clean up does not do reliably: when the supervisor ends, however it ends,
// every component, containerd shim and container ends with it, and their mounts,
// network namespaces, links and iptables chains are gone because the namespaces
// that held them are. No port, bridge or KUBE- chain can collide with what else
// runs on the machine (Docker, another containerd, another Kubernetes), or with a
// second cluster.
//
// What does exist outside, and carries the cluster's name:
//
//   - the directory Options.Dir, and its lock file beside it;
//   - the link hf-<name>, one end of a veth pair whose other end is the node's
//     network card, with routes to Pods and Services, so that this machine reaches
//     node, Pods and Services directly;
//   - three iptables rules, marked with the cluster's name, that let the node reach
//     what this machine reaches, and net.ipv4.ip_forward, which they need (it is
//     put back afterwards);
//   - cgroups below /harmony-fleet/<name>.
//
// Down removes them, and Up removes what a cluster that was killed has left. A
// cluster keeps nothing across Down or a kill: it is for trying things.
//
// # The supervisor
//
// It is the program that called Up, executed again: a program that imports this
// package becomes the supervisor when its name (os.Args[0]) says so, before main
// runs. It outlives the program that started it.
package local

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// enterNode makes the namespaces that this process was started in the node's: it
// hides the machine's directories that a node writes to behind ones of the
// cluster's own, and keeps the machine's kernel settings from being changed.
func enterNode(o order) error {
	l := layout{o.Dir}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The directory is held by a descriptor, since one of the mounts below hides it.
	dir, err := unix.Open(o.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", o.Dir, err)
	}
	defer unix.Close(dir)

	// /var/lib and /run: state of containerd, CNI and iptables. /var/log: links to
	// the Pods' logs, which are kept on disk with the cluster.
	if err := unix.Mount(l.path("var-log"), "/var/log", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /var/log: %w", err)
	}
	for path, mode := range map[string]string{"/run": "mode=755", "/var/lib": "mode=755", "/tmp": "mode=1777"} {
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	// Whatever a component or a Pod thinks it may write to, it is not this machine.
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return fmt.Errorf("make %s in the node: %w", o.Dir, err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", dir), o.Dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s in the node: %w", o.Dir, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("protect /: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, path := range []string{"/proc/sys/kernel", "/proc/sys/vm"} {
		if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("protect %s: %w", path, err)
		}
	}
	// The kubelet insists on some settings, and is content if it finds them so.
	for name, value := range kubeletSettings {
		fake := filepath.Join("/run/sysctl", name)
		if err := os.MkdirAll(filepath.Dir(fake), 0o755); err != nil {
			return fmt.Errorf("pretend setting %s: %w", name, err)
		}
		if err := os.WriteFile(fake, []byte(value+"\n"), 0o444); err != nil {
			return fmt.Errorf("pretend setting %s: %w", name, err)
		}
		if err := unix.Mount(fake, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pretend setting %s: %w", name, err)
		}
	}
	if err := unix.Sethostname([]byte(o.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := os.Chdir(o.Dir); err != nil {
		return fmt.Errorf("enter %s: %w", o.Dir, err)
	}
	return nil
}

// kubeletSettings are the kernel settings that a kubelet makes where it does not
// find them. They are the whole machine's, so the node is only made to believe.
var kubeletSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// configureNetwork gives the node's end of the link its address, in the network
// namespace of this process.
func configureNetwork(link string, at addresses) error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	if err := configureLink(link, at.Node); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: at.Host.AsSlice()}); err != nil {
		return fmt.Errorf("add default route by %s: %w", at.Host, err)
	}
	if err := os.WriteFile(forwardingPath, []byte("1"), 0); err != nil {
		return fmt.Errorf("turn forwarding on in the node: %w", err)
	}
	// A Service without endpoints refuses connections with an ICMP message. The kernel
	// sends few of these, and a client that tries often is left to wait a second for
	// one that it does not send.
	if err := os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0); err != nil {
		return fmt.Errorf("let the node refuse connections at once: %w", err)
	}
	return nil
}

// configureLink sets the link of that name up with addr.
func configureLink(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, linkBits))}); err != nil {
		return fmt.Errorf("give link %s the address %s: %w", name, addr, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hostLink and nodeLink are the names of the two ends of a cluster's link.
func hostLink(name string) string { return "hf-" + name }
func nodeLink(name string) string { return "hf-" + name + "0" }

// attachNode connects the node whose supervisor is pid with this machine, with
// routes to its Pods and Services.
func attachNode(name string, at addresses, pid int) error {
	err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: hostLink(name)},
		PeerName:      nodeLink(name),
		PeerNamespace: netlink.NsPid(pid),
	})
	if err != nil {
		return fmt.Errorf("add link %s: %w", hostLink(name), err)
	}
	if err := configureLink(hostLink(name), at.Host); err != nil {
		return err
	}
	for _, to := range []netip.Prefix{at.Pods, at.Services} {
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: at.Node.AsSlice()}); err != nil {
			return fmt.Errorf("add route to %s by %s: %w", to, at.Node, err)
		}
	}
	return nil
}

// detachNode removes this machine's end of the link, and with it the other end and
// the routes. The kernel would do so by itself, a while after the node has ended.
func detachNode(name string) error {
	link, err := netlink.LinkByName(hostLink(name))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", hostLink(name), err)
	}
	return nil
}

// overlapping says what of this machine's network is in the way of network, or "".
func overlapping(network netip.Prefix, name string) (string, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits == 0 || !network.Overlaps(netip.PrefixFrom(ip, bits)) {
			continue
		}
		device := "?"
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			device = link.Attrs().Name
		}
		if device != hostLink(name) {
			return fmt.Sprintf("the route to %s by %s", r.Dst, device), nil
		}
	}
	return "", nil
}

// cgroupPath is the parent of the cluster's cgroups, as the kubelet names it.
func cgroupPath(name string) string { return "/harmony-fleet/" + name }

const cgroupRoot = "/sys/fs/cgroup"

// makeCgroups makes the parent of the cluster's cgroups in every hierarchy, which the
// kubelet wants to find.
func makeCgroups(name string) error {
	roots, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := os.MkdirAll(filepath.Join(root, cgroupPath(name)), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups removes the cluster's cgroups from every hierarchy. Their processes
// must have ended.
func removeCgroups(ctx context.Context, name string) error {
	roots, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		top := filepath.Join(root, cgroupPath(name))
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list cgroups: %w", err)
		}
		for i := len(dirs) - 1; i >= 0; i-- { // the inner ones first
			if err := removeCgroup(ctx, dirs[i]); err != nil {
				return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
			}
		}
		// The parent goes with the last cluster on the machine.
		_ = unix.Rmdir(filepath.Dir(top))
	}
	return nil
}

// removeCgroup removes one cgroup. A process is in it for a moment after its end.
func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// cgroupHierarchies returns where cgroups are mounted: one directory with cgroup
// v2, one for each controller with v1.
func cgroupHierarchies() ([]string, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup mounts: %w", err)
	}
	var roots []string
	for line := range strings.Lines(string(content)) {
		// 25 30 0:23 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) > 4 && len(kind) > 0 && (kind[0] == "cgroup" || kind[0] == "cgroup2") {
			roots = append(roots, fields[4])
		}
	}
	return roots, nil
}

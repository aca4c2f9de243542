package local

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tools are the programs that a node needs, by the Debian package that has them.
var tools = []struct{ program, pkg string }{
	{"containerd", "containerd"},
	{"containerd-shim-runc-v2", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"iptables", "iptables"},
	{"iptables-restore", "iptables"},
	{"ip6tables", "iptables"},
	{"mount", "mount"},
}

// Where distributions put the CNI plugins, and which of them are used.
var (
	cniDirs    = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}
	cniPlugins = []string{"ptp", "host-local", "portmap", "loopback"}
)

// inspect finds what a cluster needs on this machine, or says in one message what
// is missing and what to do.
func inspect(dir string) (machine, error) {
	m, err := findTools()
	if err != nil {
		return machine{}, err
	}
	if err := checkCgroups(); err != nil {
		return machine{}, err
	}
	if err := checkOverlay(dir); err != nil {
		return machine{}, err
	}
	m.resolvers = resolvers()
	return m, nil
}

func findTools() (machine, error) {
	var m machine
	var missing, packages []string
	need := func(what, pkg string) {
		missing = append(missing, what)
		if len(packages) == 0 || packages[len(packages)-1] != pkg {
			packages = append(packages, pkg)
		}
	}
	for _, t := range tools {
		path, err := exec.LookPath(t.program)
		if err != nil {
			need(t.program, t.pkg)
		}
		switch t.program {
		case "containerd":
			m.containerd = path
		case "runc":
			m.runc = path
		}
	}
	for _, dir := range cniDirs {
		if _, err := os.Stat(filepath.Join(dir, cniPlugins[0])); err == nil {
			m.cniDir = dir
			break
		}
	}
	for _, plugin := range cniPlugins {
		if _, err := os.Stat(filepath.Join(m.cniDir, plugin)); m.cniDir == "" || err != nil {
			need("CNI plugin "+plugin, "containernetworking-plugins")
		}
	}
	if len(missing) > 0 {
		return machine{}, fmt.Errorf("local cluster: this machine has no %s: install with: apt-get install -y %s", strings.Join(missing, ", "), strings.Join(packages, " "))
	}
	return m, nil
}

// checkCgroups wants cgroup v2 with the controllers that containers need, or v1
// with each of them mounted.
func checkCgroups() error {
	needed := []string{"cpu", "memory", "pids"}
	unusable := func(what string) error {
		return fmt.Errorf("local cluster: cgroups cannot be used: %s: mount them below %s, as systemd does; in a container, run it privileged with its own cgroup namespace", what, cgroupRoot)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fs); err != nil {
		return unusable(err.Error())
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		content, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
		if err != nil {
			return unusable(err.Error())
		}
		for _, c := range needed {
			if !strings.Contains(" "+strings.TrimSpace(string(content))+" ", " "+c+" ") {
				return unusable("controller " + c + " is not available")
			}
		}
		return nil
	}
	for _, c := range append(needed, "devices", "freezer") {
		if err := unix.Statfs(filepath.Join(cgroupRoot, c), &fs); err != nil || fs.Type != unix.CGROUP_SUPER_MAGIC {
			return unusable("controller " + c + " is not mounted")
		}
	}
	return nil
}

// checkOverlay wants a directory on which overlayfs works.
func checkOverlay(dir string) error {
	_ = exec.Command("modprobe", "overlay").Run() // built in, or loaded, or the check fails
	content, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(content), "\toverlay\n") {
		return errors.New("local cluster: this kernel has no overlayfs: load it with: modprobe overlay")
	}
	for { // the innermost directory that is there already
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("local cluster: look at %s: %w", dir, err)
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("local cluster: %s is on overlayfs, where containers cannot have another: choose a directory on ext4, xfs or tmpfs (in a container, a volume)", dir)
	}
	return nil
}

// checkNetwork wants the link's name and the addresses to be free.
func checkNetwork(o Options) error {
	_, err := netlink.LinkByName(hostLink(o.Name))
	if err == nil {
		return fmt.Errorf("local cluster: there is a network link %s already: another cluster has this name; choose another name, or remove a left one with: ip link delete %s", hostLink(o.Name), hostLink(o.Name))
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("local cluster: look for link %s: %w", hostLink(o.Name), err)
	}
	taken, err := overlapping(o.Network, o.Name)
	if err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	if taken != "" {
		return fmt.Errorf("local cluster: its network %s overlaps with %s: choose another network", o.Network, taken)
	}
	return nil
}

// resolvers returns the name servers that the node can ask. One on loopback cannot
// be reached from there; systemd-resolved says elsewhere whom it asks itself.
func resolvers() []netip.Addr {
	var list []netip.Addr
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		content, _ := os.ReadFile(path) // none
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if addr, err := netip.ParseAddr(fields[1]); err == nil && addr.Is4() && !addr.IsLoopback() {
				list = append(list, addr)
			}
		}
		if len(list) > 0 {
			break
		}
	}
	return list
}

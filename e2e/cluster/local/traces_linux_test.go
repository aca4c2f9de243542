package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// process is one that belongs to the test's cluster.
type process struct {
	pid  int
	args []string
}

// processes returns those of the test's cluster: whatever is in the process
// namespace of a supervisor or component that works in the cluster's directory. Other
// clusters on the machine are left alone.
func processes(tb testing.TB) []process {
	tb.Helper()
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		tb.Fatal(err)
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	ours := map[string]bool{}
	all := map[string][]process{}
	for _, dir := range entries {
		ns, err := os.Readlink(filepath.Join(dir, "ns/pid"))
		if err != nil || ns == own {
			continue // it has ended, or is not in a node
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir)) // the pattern says that it is a number
		if cwd, err := os.Readlink(filepath.Join(dir, "cwd")); err == nil && cwd == testOptions().Dir {
			ours[ns] = true
		}
		all[ns] = append(all[ns], process{pid, strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")})
	}
	var list []process
	for ns := range ours {
		list = append(list, all[ns]...)
	}
	return list
}

// traces lists what the test's cluster may leave on the machine, one thing a line.
// What others on the machine, such as Podman or another cluster, may make meanwhile
// is not listed.
func traces(tb testing.TB) []string {
	tb.Helper()
	var list []string
	add := func(kind string, lines ...string) {
		for _, line := range lines {
			if line = strings.TrimSpace(line); line != "" {
				list = append(list, kind+": "+line)
			}
		}
	}
	matching := func(content string, words ...string) (lines []string) {
		for line := range strings.Lines(content) {
			if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
				lines = append(lines, line)
			}
		}
		return lines
	}
	run := func(name string, args ...string) string {
		output, err := exec.Command(name, args...).Output()
		if err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
		return string(output)
	}
	read := func(path string) string {
		content, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		return string(content)
	}
	for _, p := range processes(tb) {
		add("process", strings.Join(p.args, " "))
	}
	o := testOptions()
	add("process", matching(run("ps", "-eo", "args"), o.Dir+"/", o.Dir+" ")...)
	add("mount", matching(read("/proc/self/mountinfo"), o.Dir, "kubelet")...)
	add("link", matching(run("ip", "-o", "link"), hostLink(o.Name)+"@", hostLink(o.Name)+":", nodeLink(o.Name)+"@", nodeLink(o.Name)+":")...)
	network := strings.TrimSuffix(o.Network.String(), "0.0/16")
	add("route", matching(run("ip", "route"), network)...)
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		add(save, matching(run(save), "KUBE-", network, "harmony-fleet cluster "+o.Name+"\"")...)
	}
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		tb.Fatal(err)
	}
	for _, root := range hierarchies {
		for _, name := range []string{cgroupPath(o.Name), "k8s.io", "kubepods"} {
			_ = filepath.WalkDir(filepath.Join(root, name), func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					add("cgroup", path)
				}
				return nil
			})
		}
	}
	for _, path := range []string{
		o.Dir, o.Dir + ".lock", "/var/lib/kubelet", "/var/lib/cni", "/var/lib/containerd", "/etc/cni/net.d/*", "/usr/libexec/kubernetes",
		"/var/log/pods", "/var/log/containers", "/run/netns/cni-*", "/run/containerd", "/run/cni", "/run/flannel", "/tmp/hostpath*",
	} {
		found, _ := filepath.Glob(path)
		add("file", found...)
	}
	for _, setting := range []string{
		"net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_max",
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "kernel/hostname",
	} {
		if content, err := os.ReadFile("/proc/sys/" + setting); err == nil {
			add("setting", setting+" = "+string(content))
		}
	}
	slices.Sort(list)
	return list
}

// compareTraces reports what is there and was not before. The other way round is
// somebody else's doing.
func compareTraces(tb testing.TB, before []string) {
	tb.Helper()
	for _, line := range traces(tb) {
		if !slices.Contains(before, line) {
			tb.Errorf("left: %s", line)
		}
	}
}

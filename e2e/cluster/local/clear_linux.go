package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// clearTraces removes everything of a cluster that exists outside its node. It works on
// what a killed supervisor, a broken start or an earlier call has left.
func clearTraces(ctx context.Context, o Options) error {
	l := layout{o.Dir}
	if _, err := os.Lstat(l.dir); errors.Is(err, os.ErrNotExist) {
		return nil // there was none under this directory
	}
	name, network := o.Name, o.Network
	if s, err := readStatus(l); err == nil {
		name, network = s.Name, s.Network // what it was started with counts
	}
	err := errors.Join(
		detachNode(name),
		closeEgress(ctx, l, name, addressesIn(network)),
		removeCgroups(ctx, name),
		removeMounts(l.dir),
	)
	if err != nil {
		return fmt.Errorf("local cluster: clear %s: %w", l.dir, err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("local cluster: clear: %w", err)
	}
	return nil
}

// removeMounts unmounts what somebody has mounted below the directory: what is in
// there must not be removed along with it. The cluster itself mounts nothing that
// is seen outside its node.
func removeMounts(dir string) error {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- { // in the reverse order of mounting
		if err := unix.Unmount(points[i], 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	return nil
}

// egress is what was changed on the machine for the node to reach others.
type egress struct {
	Forwarding string `json:"forwarding"` // net.ipv4.ip_forward as it was before
}

func egressPath(l layout) string { return l.path("egress.json") }

// openEgress lets the node reach what this machine reaches.
func openEgress(ctx context.Context, l layout, name string, at addresses) error {
	before, err := os.ReadFile(forwardingPath)
	if err != nil {
		return err
	}
	if err := writeJSON(egressPath(l), egress{Forwarding: strings.TrimSpace(string(before))}); err != nil {
		return err
	}
	if err := os.WriteFile(forwardingPath, []byte("1"), 0); err != nil {
		return err
	}
	for _, rule := range egressRules(name, at) {
		if err := iptables(ctx, "-I", rule); err != nil {
			return err
		}
	}
	return nil
}

// closeEgress takes back what openEgress did. Forwarding stays on where another
// bridge shows that others on this machine need it by now.
func closeEgress(ctx context.Context, l layout, name string, at addresses) error {
	var e egress
	if err := readJSON(egressPath(l), &e); err != nil {
		return nil // it was not opened
	}
	for _, rule := range egressRules(name, at) {
		for iptables(ctx, "-C", rule) == nil {
			if err := iptables(ctx, "-D", rule); err != nil {
				return err
			}
		}
	}
	if e.Forwarding != "0" {
		return nil
	}
	if bridges, _ := filepath.Glob("/sys/class/net/*/bridge"); len(bridges) > 0 {
		return nil
	}
	if clusters, _ := filepath.Glob("/sys/class/net/" + hostLink("*")); len(clusters) > 0 {
		return nil
	}
	return os.WriteFile(forwardingPath, []byte("0"), 0)
}

// forwardingPath is the one kernel setting that a cluster needs on the machine, and
// in the node.
const forwardingPath = "/proc/sys/net/ipv4/ip_forward"

// egressRules let the node reach what the machine reaches, under its address. They
// stand first, since container engines drop what they do not know.
func egressRules(name string, at addresses) [][]string {
	mark := []string{"-m", "comment", "--comment", "harmony-fleet cluster " + name}
	return [][]string{
		append([]string{"-t", "nat", "POSTROUTING", "-s", at.Network.String(), "!", "-o", hostLink(name)}, append(mark, "-j", "MASQUERADE")...),
		append([]string{"-t", "filter", "FORWARD", "-i", hostLink(name)}, append(mark, "-j", "ACCEPT")...),
		append([]string{"-t", "filter", "FORWARD", "-o", hostLink(name)}, append(mark, "-j", "ACCEPT")...),
	}
}

// iptables runs the operation (-I, -D) on a rule of the form that egressRules gives.
func iptables(ctx context.Context, operation string, rule []string) error {
	args := append([]string{"-w", "5", rule[0], rule[1], operation}, rule[2:]...)
	if output, err := exec.CommandContext(ctx, "iptables", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}

package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/e2e/cluster/internal/testslot"
)

// refused expects that Up fails at once, says want, and leaves nothing.
func refused(t *testing.T, o Options, want string) {
	t.Helper()
	before := traces(t)
	begin := time.Now()
	_, err := New(o).Up(t.Context())
	if err == nil {
		if err := New(o).Down(context.Background()); err != nil {
			t.Error(err)
		}
		t.Fatal("it is up")
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q in it", err, want)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v to refuse", took)
	}
	compareTraces(t, before)
}

// withLink adds a link and removes it at the test's end.
func withLink(t *testing.T, args ...string) {
	t.Helper()
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", args[0]).Run() }) // it may not be there
	if output, err := exec.Command("ip", append([]string{"link", "add"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("add link: %v: %s", err, output)
	}
}

func TestTakenLinkIsRefused(t *testing.T) {
	needCluster(t)
	link := hostLink(testOptions().Name)
	withLink(t, link, "type", "veth", "peer", "name", link+"x")
	refused(t, testOptions(), "ip link delete "+link)
}

func TestTakenNetworkIsRefused(t *testing.T) {
	needCluster(t)
	link := fmt.Sprintf("fprobe%d", testslot.Take().Number)
	taken := strings.Replace(testOptions().Network.String(), ".0.0/16", ".7.0/24", 1)
	withLink(t, link, "type", "veth", "peer", "name", link+"x")
	for _, args := range [][]string{{"link", "set", link, "up"}, {"route", "add", taken, "dev", link}} {
		if output, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, output)
		}
	}
	refused(t, testOptions(), "overlaps with the route to "+taken+" by "+link+": choose another network")
}

// TestMissingToolIsRefused takes one thing at a time away from the machine.
func TestMissingToolIsRefused(t *testing.T) {
	needCluster(t)
	kept := []string{"ps", "ip", "iptables-save", "ip6tables-save", "go", "modprobe"} // what the test and the start run besides
	for _, tool := range tools {
		kept = append(kept, tool.program)
	}
	for _, c := range []struct{ program, pkg string }{
		{"containerd", "containerd"},
		{"ctr", "containerd"},
		{"containerd-shim-runc-v2", "containerd"},
		{"runc", "runc"},
		{"iptables", "iptables"},
		{"ip6tables", "iptables"},
	} {
		t.Run(c.program, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range kept {
				path, err := exec.LookPath(name)
				if err != nil || name == c.program {
					continue // taken away, or not needed
				}
				if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir)
			refused(t, testOptions(), "this machine has no "+c.program+": install with: apt-get install -y "+c.pkg)
		})
	}
	t.Run("CNI plugins", func(t *testing.T) {
		before := cniDirs
		t.Cleanup(func() { cniDirs = before })
		cniDirs = []string{t.TempDir()}
		refused(t, testOptions(), "CNI plugin ptp, CNI plugin host-local, CNI plugin portmap, CNI plugin loopback: install with: apt-get install -y containernetworking-plugins")
	})
}

func TestClusterOfAnotherNameInTheSameDirectoryIsRefused(t *testing.T) {
	needCluster(t)
	up(t)
	o := testOptions()
	o.Name = "other"
	_, err := New(o).Up(t.Context())
	if err == nil || !strings.Contains(err.Error(), "has the name "+testOptions().Name) {
		t.Errorf("got %v", err)
	}
}

func TestUsersAreRefused(t *testing.T) {
	needCluster(t)
	// The test's binary and what it reads are root's alone.
	binary := fmt.Sprintf("/tmp/fleet-test-user-%d", testslot.Take().Number)
	t.Cleanup(func() { _ = os.Remove(binary) }) // reported below if it was not made
	if err := linkOrCopy("/proc/self/exe", binary); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Dir = "/tmp"
	cmd.Env = []string{"FLEET_TEST_UP=1", handOn(), "HOME=/tmp", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "it needs root: run this with sudo") {
		t.Errorf("got %v: %s", err, output)
	}
}

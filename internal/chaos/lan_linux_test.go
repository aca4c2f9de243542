package chaos

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolatedVariable tells the test binary that it is in namespaces of its own.
const isolatedVariable = "FLEET_CHAOS_ISOLATED"

// isolate runs this test binary again in a network and a mount namespace of its
// own. Whatever is made there, bridges, packet filters and file systems, goes with
// its last process, however that ends.
func isolate() (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// The child dies with the thread that started it.
	runtime.LockOSThread()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolatedVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("run the tests in namespaces of their own: %w", err)
	}
	return cmd.ProcessState.ExitCode(), nil
}

// missing tells why a scenario cannot run here; empty: it can.
func missing(s scenario) string {
	if !s.root {
		return ""
	}
	if os.Geteuid() != 0 {
		return "it needs root"
	}
	for _, program := range []string{"iptables", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is not installed"
		}
	}
	return ""
}

// disk is a file system of its own, of so many bytes.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T, size int) *disk {
	t.Helper()
	d := &disk{t, t.TempDir()}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount %s: %v", d.dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", d.dir, err)
		}
	})
	return d
}

// fill takes all the room that is left.
func (d *disk) fill() {
	d.t.Helper()
	f, err := os.Create(filepath.Join(d.dir, "filler"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4096, 1} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			d.t.Fatal(err)
		}
	}
}

// clear gives the room back.
func (d *disk) clear() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.dir, "filler")); err != nil {
		d.t.Fatal(err)
	}
}

// lan is a switch, to which brokers in network namespaces of their own are
// plugged. The tests are its host 1.
type lan struct {
	bridge *netlink.Bridge
	mu     sync.Mutex
	ports  int
}

func lanAddress(host int) string { return fmt.Sprintf("198.18.0.%d", host) } // RFC 2544

func newLAN(t *testing.T) *lan {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "switch"
	l := &lan{bridge: &netlink.Bridge{LinkAttrs: attrs}}
	if err := netlink.LinkAdd(l.bridge); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l.bridge); err != nil {
			t.Errorf("remove the bridge %s: %v", attrs.Name, err)
		}
	})
	if err := bringUp(l.bridge, lanAddress(1)); err != nil {
		t.Fatal(err)
	}
	return l
}

// plug connects a process's namespace, which will be that host: its interface
// "eth" is a cable's other end, which goes with the namespace. A host keeps its
// hardware address, as a machine does that is started again.
func (l *lan) plug(pid, host int) error {
	l.mu.Lock()
	l.ports++
	name := fmt.Sprintf("port%d", l.ports)
	l.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth", PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(host)},
	}); err != nil {
		return fmt.Errorf("cable %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(link, l.bridge), netlink.LinkSetUp(link))
}

// configure brings this process's network up, and its interface "eth" with the
// address.
func configure(address string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil || address == "" {
		return err
	}
	eth, err := netlink.LinkByName("eth")
	if err != nil {
		return err
	}
	return bringUp(eth, address)
}

func bringUp(link netlink.Link, address string) error {
	addr, err := netlink.ParseAddr(address + "/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}

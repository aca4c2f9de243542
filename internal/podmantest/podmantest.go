//go:build linux

// Package podmantest runs a real Podman for a test, apart from everything else on
// the machine: with storage, configuration and socket in a temporary directory,
// and with mount, process and network namespaces of its own. Whatever it leaves
// behind, also when the test is killed, ends with those namespaces.
//
//	p := podmantest.Start(t)
//	p.Image("localhost/probe:1")
//	e, err := engine.Open(p.Socket)
//	text, err := p.Get("http://127.0.0.1:8080/")
//
// Ports of containers are reachable through [Podman.Dial] and [Podman.Get] only.
// It needs root, podman, runc, CNI plugins and util-linux. Where they are missing
// the test is skipped, and fails instead where FLEET_REQUIRE_PODMAN=1.
package podmantest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Podman is a running Podman service.
type Podman struct {
	Socket string // address, as for engine.Open

	dir    string
	path   string // of the socket
	holder *process
	mu     sync.Mutex
	server *process // nil while it is stopped
	images map[string]bool
}

// Options say how a Podman differs from the usual.
type Options struct {
	// StorageBytes puts images and containers on a file system of that size, for
	// tests of full disks; 0: where temporary directories are.
	StorageBytes int
}

const patience = 60 * time.Second

// Require skips the test, or fails it where FLEET_REQUIRE_PODMAN=1, unless a
// Podman can be run here, with programs beside it.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "it needs root"
	}
	for _, program := range append([]string{"podman", "runc", "conmon"}, programs...) {
		if _, err := exec.LookPath(program); err != nil {
			why = program + " is not installed"
		}
	}
	if why == "" {
		return
	}
	if os.Getenv("FLEET_REQUIRE_PODMAN") == "1" {
		t.Fatalf("no Podman can be run here: %s (FLEET_REQUIRE_PODMAN=1)", why)
	}
	t.Skipf("no Podman can be run here: %s", why)
}

// Start runs a Podman until the test ends.
func Start(t testing.TB, opts ...Options) *Podman {
	t.Helper()
	Require(t, "unshare", "nsenter")
	var o Options
	if len(opts) > 0 {
		o = opts[0]
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

var shared struct {
	sync.Mutex
	p *Podman
}

// Shared gives the Podman that all tests of the package share, whose TestMain
// calls [CloseShared]. They use device ids and ports of their own.
func Shared(t testing.TB) *Podman {
	t.Helper()
	Require(t, "unshare", "nsenter")
	shared.Lock()
	defer shared.Unlock()
	if shared.p == nil {
		p, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		shared.p = p
	}
	return shared.p
}

// CloseShared ends the shared Podman, if there is one.
func CloseShared() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.p == nil {
		return nil
	}
	err := shared.p.Close()
	shared.p = nil
	return err
}

// New runs a Podman until Close.
func New(o Options) (_ *Podman, err error) {
	dir, err := os.MkdirTemp("", "podman-test-")
	if err != nil {
		return nil, err
	}
	p := &Podman{dir: dir, path: filepath.Join(dir, "podman.sock"), images: map[string]bool{}}
	p.Socket = "unix://" + p.path
	defer func() {
		if err != nil {
			err = fmt.Errorf("run Podman: %w", errors.Join(err, p.Close()))
		}
	}()
	if err := p.configure(); err != nil {
		return nil, err
	}
	// The first process of the namespaces; it also reaps what loses its parent.
	script := `mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns`
	if o.StorageBytes > 0 {
		script += fmt.Sprintf(` && mount -t tmpfs -o size=%d tmpfs %s`, o.StorageBytes, p.file("root"))
	}
	script += ` && echo ready && while :; do sleep 1000000 & wait; done`
	p.holder, err = run(exec.Command("unshare", "--fork", "--pid", "--kill-child", "--mount-proc", "--net", "--mount", "sh", "-c", script))
	if err != nil {
		return nil, err
	}
	if err := p.holder.says("ready"); err != nil {
		return nil, err
	}
	if err := p.inside(loopbackUp); err != nil {
		return nil, err
	}
	return p, p.Up()
}

func (p *Podman) file(name string) string { return filepath.Join(p.dir, name) }

// network is that of the containers; its bridge is in the namespace.
const network = `{"cniVersion":"0.4.0","name":"podman","plugins":[
{"type":"bridge","bridge":"cni-podman0","isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local",
 "dataDir":"%s","routes":[{"dst":"0.0.0.0/0"}],"ranges":[[{"subnet":"10.88.0.0/16","gateway":"10.88.0.1"}]]}},
{"type":"portmap","capabilities":{"portMappings":true}},{"type":"firewall"},{"type":"tuning"}]}`

// RegistryAddress is where a test may serve a registry, with [Podman.Listen],
// from which Podman pulls without TLS.
const RegistryAddress = "127.0.0.1:5000"

func (p *Podman) configure() error {
	var errs []error
	for _, name := range []string{"root", "run", "tmp", "net", "ipam", "vol"} {
		errs = append(errs, os.Mkdir(p.file(name), 0o700))
	}
	write := func(name, text string) { errs = append(errs, os.WriteFile(p.file(name), []byte(text), 0o600)) }
	write("net/podman.conflist", fmt.Sprintf(network, p.file("ipam")))
	write("registries.conf", fmt.Sprintf("unqualified-search-registries = []\n[[registry]]\nlocation = %q\ninsecure = true\n", RegistryAddress))
	write("policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	// Where CAP_SYS_RESOURCE is withheld, limits cannot be raised, and crun does not
	// take the hybrid layout of cgroups.
	write("containers.conf", fmt.Sprintf(`[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
volume_path = %q
[network]
network_config_dir = %q
`, p.file("vol"), p.file("net")))
	return errors.Join(errs...)
}

// Command is a `podman` command on the same storage.
func (p *Podman) Command(ctx context.Context, args ...string) *exec.Cmd {
	all := append([]string{
		"--target", strconv.Itoa(p.child()), "--pid", "--mount", "--net", "podman",
		"--root", p.file("root"), "--runroot", p.file("run"), "--tmpdir", p.file("tmp"), "--storage-driver", "overlay",
	}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", all...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+p.file("containers.conf"), "CONTAINERS_REGISTRIES_CONF="+p.file("registries.conf"),
		"DISABLE_HC_SYSTEMD=true", "TMPDIR="+p.file("tmp"), "REGISTRY_AUTH_FILE=", "HOME="+p.dir)
	return cmd
}

// Run runs a `podman` command to its end and gives its output.
func (p *Podman) Run(args ...string) (string, error) { return Output(p.Command, args...) }

// Output runs a `podman` command that command makes to its end, and gives its
// output.
func Output(command func(ctx context.Context, args ...string) *exec.Cmd, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := command(ctx, args...)
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // conmon keeps the pipes
	out, err := cmd.Output()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Errorf("podman %v: %w: %s", args, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// child is the first process inside the namespaces.
func (p *Podman) child() int { return childOf(p.holder.Cmd.Process.Pid) }

func childOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	fields := strings.Fields(string(data))
	if err != nil || len(fields) == 0 {
		return 0
	}
	child, _ := strconv.Atoi(fields[0]) // the kernel's own
	return child
}

// Up starts the service, if it was stopped, and waits until it answers.
func (p *Podman) Up() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		return nil
	}
	_ = os.Remove(p.path) // what a killed service left
	server, err := run(p.Command(context.Background(), "system", "service", "--time", "0", p.Socket))
	if err != nil {
		return err
	}
	p.server = server
	deadline := time.Now().Add(patience)
	for {
		c, err := net.DialTimeout("unix", p.path, time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) || server.over() {
			return fmt.Errorf("the service does not listen: %w: %s", err, server.output)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Down kills the service; containers run on.
func (p *Podman) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil {
		return
	}
	if pid := childOf(p.server.Cmd.Process.Pid); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = p.server.Wait() // killed
	p.server = nil
}

// Rollback runs do and takes Podman's database back to what it was before. What do
// did to the storage stays: so it is when Podman is killed after the one and
// before the other. Podman runs again afterwards.
func (p *Podman) Rollback(t testing.TB, do func()) {
	t.Helper()
	database := p.file("root/libpod/bolt_state.db")
	p.Down()
	before, err := os.ReadFile(database)
	if err == nil {
		err = p.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	do()
	p.Down()
	if err := errors.Join(os.WriteFile(database, before, 0o600), p.Up()); err != nil {
		t.Fatal(err)
	}
}

// Close ends everything and removes every trace.
func (p *Podman) Close() error {
	var err error
	if p.server != nil {
		_, err = p.Run("rm", "--all", "--force", "--time", "0")
		p.Down()
	}
	if p.holder != nil {
		p.holder.Kill()
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// Image makes an image that runs the probe (see its own comment), whose default
// is to sleep.
func (p *Podman) Image(t testing.TB, name string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.images[name] {
		return
	}
	layer, err := Layer()
	if err != nil {
		t.Fatal(err)
	}
	file := p.file("layer.tar")
	if err := os.WriteFile(file, layer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Run("import", "--change", `ENTRYPOINT ["/probe"]`, "--change", "LABEL name="+name, file, name); err != nil {
		t.Fatal(err)
	}
	p.images[name] = true
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// inside runs f with the network of the containers. Sockets that it makes stay
// there.
func (p *Podman) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.child()))
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Dial connects to a port of a container.
func (p *Podman) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = p.inside(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen takes a port where containers have theirs.
func (p *Podman) Listen(network, address string) (l net.Listener, err error) {
	err = p.inside(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Transport is HTTP by [Podman.Dial], a connection for each request.
func (p *Podman) Transport() *http.Transport {
	return &http.Transport{DialContext: p.Dial, DisableKeepAlives: true}
}

// Get gives the body of an HTTP answer.
func (p *Podman) Get(url string) (string, error) {
	resp, err := (&http.Client{Transport: p.Transport(), Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(body), err
}

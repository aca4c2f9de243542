//go:build linux

// Package hostpodman runs a real Podman for a test in the machine's own PID
// namespace, where an agent sees the processes of its containers, with an image
// that has a shell and the usual tools. Storage and socket are in a temporary
// directory.
//
//	p := hostpodman.Start(t)
//	p.Service(t, "vm-device-00", "hello", "web", "sh", "-c", "while :; do echo tick; sleep 1; done")
//	stack.Start(ctx, stack.Options{RuntimeSocket: p.Socket})
//
// It needs root, podman and runc. Where they are missing the test is skipped, and
// fails instead where FLEET_REQUIRE_PODMAN=1.
package hostpodman

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/internal/childproc"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// Image has the tools.
const Image = "localhost/tools:1"

const patience = 60 * time.Second

// Podman is a running Podman service.
type Podman struct {
	Socket string // address, as for engine.Open

	dir     string
	service *childproc.Process // nil: not started
}

// Start runs a Podman until the test ends.
func Start(t testing.TB) *Podman {
	t.Helper()
	podmantest.Require(t, "ldd")
	dir, err := os.MkdirTemp("", "hostpodman-")
	if err != nil {
		t.Fatal(err)
	}
	p := &Podman{dir: dir, Socket: "unix://" + filepath.Join(dir, "podman.sock")}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	// Where CAP_SYS_RESOURCE is withheld, limits cannot be raised, and crun does not
	// take the hybrid layout of cgroups.
	if err := os.WriteFile(p.file("containers.conf"), []byte(`[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.serve(); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "Podman's service", func() bool {
		c, err := net.DialTimeout("unix", strings.TrimPrefix(p.Socket, "unix://"), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	rootfs, err := RootFS()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.file("rootfs.tar"), rootfs, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Run("import", p.file("rootfs.tar"), Image); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *Podman) file(name string) string { return filepath.Join(p.dir, name) }

// Command is a `podman` command on the same storage.
func (p *Podman) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "podman", append([]string{
		"--root", p.file("root"), "--runroot", p.file("run"), "--tmpdir", p.file("tmp"),
	}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+p.file("containers.conf"), "HOME="+p.dir)
	return cmd
}

// Run runs a `podman` command to its end and gives its output.
func (p *Podman) Run(args ...string) (string, error) { return podmantest.Output(p.Command, args...) }

// serve runs the service, which ends with this process.
func (p *Podman) serve() error {
	cmd := p.Command(context.Background(), "system", "service", "--time", "0", p.Socket)
	cmd.WaitDelay = time.Second
	var err error
	p.service, err = childproc.Start(cmd)
	return err
}

func (p *Podman) close() error {
	var err error
	if p.service != nil {
		_, err = p.Run("rm", "--all", "--force", "--time", "0")
		p.service.Kill()
	}
	p.reap()
	// What Podman starts to clean up after a container may still mount something.
	for deadline := time.Now().Add(patience); ; time.Sleep(testwait.Interval) {
		p.unmount()
		removeErr := os.RemoveAll(p.dir)
		if removeErr == nil || time.Now().After(deadline) {
			return errors.Join(err, removeErr)
		}
	}
}

// reap ends the conmon of each exec, which would stay for five minutes after its
// program. They are known by this Podman's directory among their arguments.
func (p *Podman) reap() {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(data, []byte(p.dir+"/")) {
			continue // ended, or somebody else's
		}
		if program, _, _ := bytes.Cut(data, []byte{0}); filepath.Base(string(program)) != "conmon" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// unmount takes away what Podman mounted: containers, and its own storage. What
// ends with a container may be a moment late, hence lazily.
func (p *Podman) unmount() {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return // then the directory cannot be removed, which says so
	}
	lines := strings.Split(string(table), "\n")
	slices.Reverse(lines) // the inner ones were made later
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], p.dir+"/") {
			_ = syscall.Unmount(fields[4], unix.MNT_DETACH)
		}
	}
}

// Service runs a container that the agent of a device takes for one of its
// services, and gives its id. Where there is one of that name already it is
// replaced.
func (p *Podman) Service(t testing.TB, device, deployment, service string, argv ...string) string {
	t.Helper()
	id, err := p.Run(append([]string{
		"run", "--detach", "--log-driver", "k8s-file", "--name", "fleet_" + device + "_" + deployment + "_" + service + "_" + rand.Text(),
		"--label", "dev.harmony.fleet.device=" + device, "--label", "dev.harmony.fleet.deployment=" + deployment,
		"--label", "dev.harmony.fleet.service=" + service, Image,
	}, argv...)...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// programs are those of this machine that the image has.
var programs = []string{
	"sh", "cat", "sleep", "true", "false", "stty", "head", "tail", "tr", "env", "id", "yes", "wc", "sha256sum", "dd", "seq", "tty", "kill", "setsid", "mkdir", "touch", "ls",
}

var library = regexp.MustCompile(`(?m)(/\S+)\s+\(0x`)

// RootFS is a tar archive of the root file system of [Image]: programs of this
// machine and the libraries that they need.
func RootFS() ([]byte, error) {
	files := map[string]string{} // in the archive: here
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, err
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, err
		}
		files["bin/"+name] = path
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			continue // linked statically
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			files[strings.TrimPrefix(m[1], "/")] = m[1]
		}
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, dir := range []string{"tmp/", "proc/", "sys/", "dev/", "etc/", "root/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	add := func(name string, mode fs.FileMode, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(mode), Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	for name, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		if err := add(name, 0o755, data); err != nil {
			return nil, err
		}
	}
	if err := add("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")); err != nil {
		return nil, err
	}
	return archive.Bytes(), w.Close()
}

// Running tells whether a process of this machine has an argument that is word.
func Running(word string) bool { return PID(word) != 0 }

// PID is a process of this machine that has an argument that is word; 0: there
// is none.
func PID(word string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // it ended
		}
		for arg := range bytes.SplitSeq(data, []byte{0}) {
			if string(arg) == word {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
				return pid
			}
		}
	}
	return 0
}

// Package docker has the Dockerfile of the images, and the test that builds them.
package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// podman runs Podman with a store and settings of the test's own.
type podman struct {
	t   *testing.T
	dir string
	env []string
}

// containersConf makes do where a machine withholds CAP_SYS_RESOURCE: crun refuses
// its cgroups, and limits cannot be raised.
const containersConf = `[engine]
runtime = "runc"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

func newPodman(t *testing.T) *podman {
	t.Helper()
	if os.Getenv("HARMONY_FLEET_E2E") != "1" {
		t.Skip("needs root, Podman, runc and a minute: set HARMONY_FLEET_E2E=1")
	}
	for _, program := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is not on PATH: apt-get install -y podman runc", program)
		}
	}
	// Not t.TempDir: Podman must empty its store, since parts of it are mounts.
	dir, err := os.MkdirTemp("", "fleet-images-")
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte(containersConf), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &podman{t: t, dir: dir, env: append(os.Environ(), "CONTAINERS_CONF="+conf, "TMPDIR="+dir)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if output, err := p.command(ctx, "system", "reset", "--force").CombinedOutput(); err != nil {
			t.Errorf("empty the store: %v: %s", err, output)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *podman) command(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"), "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	cmd := exec.CommandContext(ctx, "podman", append(global, args...)...)
	cmd.Env = p.env
	return cmd
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	cmd := p.command(p.t.Context(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		p.t.Fatalf("podman %s: %v: %s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

// importBase makes an image of directories and links, and returns its name.
func (p *podman) importBase(name string, links map[string]string, changes ...string) string {
	p.t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, dir := range []string{"usr/", "tmp/", "goroot/", "modules/", "gocache/", "root/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o1777}); err != nil {
			p.t.Fatal(err)
		}
	}
	for name, to := range links {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		p.t.Fatal(err)
	}
	path := filepath.Join(p.dir, name+".tar")
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		p.t.Fatal(err)
	}
	full := "localhost/" + name + ":test"
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	p.run(append(args, path, full)...)
	return full
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(output))
}

// targets are the components that the Dockerfile builds.
func targets(t *testing.T) (names []string) {
	t.Helper()
	content, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`(?m)^FROM run AS (\S+)$`).FindAllStringSubmatch(string(content), -1) {
		names = append(names, found[1])
	}
	return names
}

func TestEveryProgramHasATarget(t *testing.T) {
	programs, err := filepath.Glob("../../cmd/*")
	if err != nil {
		t.Fatal(err)
	}
	have := targets(t)
	for _, p := range programs {
		if !slices.Contains(have, filepath.Base(p)) {
			t.Errorf("the Dockerfile has no target %s", filepath.Base(p))
		}
	}
	if len(have) != len(programs) {
		t.Errorf("targets %v, programs %v", have, programs)
	}
}

// TestImagesAreBuiltAndRun builds on this machine's own Go, mounted into an image
// that has nothing itself: the published base images may be out of reach.
func TestImagesAreBuiltAndRun(t *testing.T) {
	p := newPodman(t)
	build := p.importBase("build", map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"},
		"ENV PATH=/goroot/bin:/usr/bin", "ENV HOME=/root", "ENV GOROOT=/goroot", "ENV GOMODCACHE=/modules", "ENV GOCACHE=/gocache", "ENV GOPROXY=off", "ENV GOFLAGS=-mod=readonly")
	distroless := p.importBase("run", nil)
	args := func(target, runImage string) []string {
		return []string{"build", "--quiet", "--file", "Dockerfile", "--target", target, "--tag", "localhost/" + target + ":test", "--layers",
			"--build-arg", "BUILD_IMAGE=" + build, "--build-arg", "RUN_IMAGE=" + runImage, "--build-arg", "VERSION=v1.2.3",
			"--volume", "/usr:/usr:ro",
			"--volume", goEnv(t, "GOROOT") + ":/goroot:ro",
			"--volume", goEnv(t, "GOMODCACHE") + ":/modules:ro",
			"--volume", goEnv(t, "GOCACHE") + ":/gocache",
			"../.."}
	}
	for _, runImage := range []string{distroless, "scratch"} {
		for _, target := range targets(t) {
			t.Run(target+" on "+strings.TrimPrefix(runImage, "localhost/"), func(t *testing.T) {
				p := &podman{t: t, dir: p.dir, env: p.env}
				begin := time.Now()
				p.run(args(target, runImage)...)
				t.Logf("built after %v", time.Since(begin).Round(time.Millisecond))
				name := "localhost/" + target + ":test"
				var inspected []struct {
					Config struct {
						User       string
						Entrypoint []string
					}
				}
				if err := json.Unmarshal([]byte(p.run("image", "inspect", name)), &inspected); err != nil {
					t.Fatal(err)
				}
				if c := inspected[0].Config; c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/" + target}) {
					t.Errorf("config %+v", c)
				}
				version := "--version"
				if target == "fleet" {
					version = "version"
				}
				output := p.run("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", name, version)
				if !strings.Contains(output, "v1.2.3") {
					t.Errorf("it says %q", output)
				}
			})
		}
	}
}

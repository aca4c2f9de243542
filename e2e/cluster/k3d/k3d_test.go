package k3d

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/e2e/image"
)

func options(s standIn) Options { return Options{Dir: filepath.Join(s.dir, "dir")} }

func up(t *testing.T, o Options) *Cluster {
	t.Helper()
	c, err := New(o).Up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c.(*Cluster)
}

func TestUpMakesTheClusterOnce(t *testing.T) {
	s := standIns(t, "absent")
	c := up(t, options(s))
	const want = "k3d cluster create fleet-e2e --servers 1 --wait --timeout 5m0s --kubeconfig-update-default=false --kubeconfig-switch-context=false " +
		"--runtime-label dev.harmony-fleet.made-by=e2e@all --k3s-arg --disable=traefik@server:* --k3s-arg --disable=metrics-server@server:*"
	if got := s.calls("k3d cluster create"); len(got) != 1 || got[0] != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := c.NodeAddresses(); !slices.Equal(got, []string{"127.0.0.2", "127.0.0.1"}) {
		t.Errorf("addresses %v: want those of agent and server, and not the load balancer's", got)
	}
	info, err := os.Stat(c.Kubeconfig())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: %v, %v", info, err)
	}
	up(t, options(s))
	if n := len(s.calls("k3d cluster create")); n != 1 {
		t.Errorf("created %d times", n)
	}
}

func TestUpFromSeveralProcessesMakesOneCluster(t *testing.T) {
	s := standIns(t, "absent")
	results := make(chan error)
	for range 4 {
		go func() {
			cmd := exec.Command(os.Args[0])
			output, err := cmd.CombinedOutput()
			if err != nil {
				err = errors.New(string(output))
			}
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := len(s.calls("k3d cluster create")); n != 1 {
		t.Errorf("created %d times", n)
	}
}

func TestStoppedClusterIsStarted(t *testing.T) {
	s := standIns(t, "stopped")
	up(t, options(s))
	if got := s.calls("k3d cluster start"); len(got) != 1 || len(s.calls("k3d cluster create")) != 0 {
		t.Errorf("calls %q", s.calls(""))
	}
}

func TestDownDeletesOnlyWhatWasMadeHere(t *testing.T) {
	t.Run("made here", func(t *testing.T) {
		s := standIns(t, "absent")
		c := up(t, options(s))
		for range 2 {
			if err := c.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(s.calls("k3d cluster delete fleet-e2e")); n != 1 {
			t.Errorf("deleted %d times", n)
		}
		if left, _ := filepath.Glob(filepath.Join(s.dir, "dir", "*")); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("made by somebody else", func(t *testing.T) {
		s := standIns(t, "running")
		if err := up(t, options(s)).Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(s.calls("k3d cluster delete")); n != 0 {
			t.Errorf("deleted %d times", n)
		}
	})
}

func TestImagesAreStreamedIntoEveryNodeOnce(t *testing.T) {
	s := standIns(t, "running")
	c := up(t, options(s))
	binary := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(binary, []byte("a program"), 0o700); err != nil {
		t.Fatal(err)
	}
	var images []*image.Image
	for _, name := range []string{"one", "two"} {
		img, err := image.FromBinary(image.Options{}, name, binary)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	for range 2 {
		if err := c.LoadImages(t.Context(), images[0], images[1]); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{images[0].Ref(), images[1].Ref()}
	for _, node := range []string{"k3d-fleet-e2e-server-0", "k3d-fleet-e2e-agent-0"} {
		if got := s.loaded(node); !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", node, got, want)
		}
		if n := len(s.calls("docker exec -i " + node + " ctr -n k8s.io images import -")); n != len(images) {
			t.Errorf("%s: %d imports", node, n)
		}
	}
	if len(s.calls("docker exec -i k3d-fleet-e2e-serverlb")) != 0 {
		t.Error("the load balancer was given images")
	}
}

func TestFailuresSayWhatToDoAndLeaveNothing(t *testing.T) {
	for _, c := range []struct {
		name, state, fail, want string
		options                 Options
	}{
		{name: "no engine", state: "absent", fail: "docker version: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", want: "no Docker engine answers: start it"},
		{name: "create fails", state: "absent", fail: "k3d cluster create: Cluster creation FAILED, all changes have been rolled back!", want: "make fleet-e2e: k3d cluster create: exit status 1: FATA[0000] Cluster creation FAILED"},
		{name: "old k3d", state: "absent", fail: "k3d cluster list: unknown shorthand flag: 'o' in -o", want: "list clusters"},
		{name: "no kubeconfig", state: "absent", fail: "k3d kubeconfig get: failed to get kubeconfig", want: "fetch kubeconfig of fleet-e2e"},
		{name: "somebody's stopped cluster does not start", state: "stopped", fail: "k3d cluster start: port is taken", want: "delete it with: k3d cluster delete fleet-e2e"},
		{name: "bad name", state: "absent", options: Options{Name: "Fleet"}, want: "DNS label"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := standIns(t, c.state)
			if err := s.write("fail", c.fail); err != nil {
				t.Fatal(err)
			}
			c.options.Dir = options(s).Dir
			_, err := New(c.options).Up(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if got := s.read("cluster"); got != c.state {
				t.Errorf("the cluster is %s, it was %s", got, c.state)
			}
		})
	}
}

func TestHalfMadeClusterOfOurOwnIsMadeAnew(t *testing.T) {
	s := standIns(t, "stopped")
	if err := errors.Join(s.write("labelled", "yes"), s.write("fail", "k3d cluster start: no such container")); err != nil {
		t.Fatal(err)
	}
	up(t, options(s))
	if len(s.calls("k3d cluster delete")) != 1 || len(s.calls("k3d cluster create")) != 1 {
		t.Errorf("calls %q", s.calls(""))
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := New(Options{Dir: t.TempDir()}).Usable(t.Context()); err == nil || !strings.Contains(err.Error(), "is not on PATH: install it (https://") {
		t.Errorf("got %v", err)
	}
}

// broken is an image that cannot be written.
type broken struct{}

func (broken) Ref() string                  { return "harmony-fleet.local/broken:1" }
func (broken) WriteArchive(io.Writer) error { return errors.New("disk on fire") }

func TestBrokenImageIsNamed(t *testing.T) {
	s := standIns(t, "running")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := up(t, options(s)).LoadImages(ctx, broken{})
	for _, want := range []string{"node k3d-fleet-e2e-agent-0", "load image harmony-fleet.local/broken:1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

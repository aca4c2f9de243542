//go:build linux

package reconcile_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const probe = "localhost/probe:1"

func closePodman() error { return podmantest.CloseShared() }

// podman is the shared Podman, with the probe's image, and a client of it.
func podman(t testing.TB) (*podmantest.Podman, *engine.Engine) {
	t.Helper()
	p := podmantest.Shared(t)
	p.Image(t, probe)
	return p, open(t, p)
}

func open(t testing.TB, p *podmantest.Podman) *engine.Engine {
	t.Helper()
	e, err := engine.Open(p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// startClean runs a reconciler that removes its containers when the test ends.
func startClean(t testing.TB, device string, e reconcile.Engine, change ...func(*reconcile.Options)) *runner {
	t.Helper()
	t.Cleanup(func() {
		list, err := e.Containers(context.Background(), device)
		for _, c := range list {
			err = e.Remove(context.Background(), c.ID)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return start(t, device, e, change...)
}

// answers waits until the container behind a port says text.
func answers(t testing.TB, p *podmantest.Podman, port int, text string) {
	t.Helper()
	got := ""
	testwait.For(t, patience, fmt.Sprintf("port %d answers %q", port, text), func() bool {
		var err error
		if got, err = p.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err != nil {
			got = err.Error()
		}
		return got == text
	})
}

func TestPodmanRunsWhatIsDesired(t *testing.T) {
	p, e := podman(t)
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "text"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := startClean(t, "whole", e)
	r.Set(desired(t, 1, services{"one": {
		service("env", probe, withPort("127.0.0.1:7001:80"), withCommand("env", "GREETING"), func(s *command.Service) {
			s.Env = map[string]string{"GREETING": "hello from the environment"}
			s.Resources = command.Resources{MemoryBytes: 64 << 20, CPUs: 0.5}
			s.Workdir = "/tmp"
			s.StopTimeoutS = 3
		}),
		service("file", probe, withPort("7002:80/tcp"), withCommand("file", "/data/text"), func(s *command.Service) {
			s.Volumes = []string{data + ":/data:ro", "state:/state"}
		}),
		service("user", probe, withPort("7003:8080"), withCommand("id"), func(s *command.Service) {
			s.User, s.Env = "1000:2000", map[string]string{"PORT": "8080"} // ports below 1024 are root's
		}),
		service("entry", probe, withPort("7004:80"), func(s *command.Service) { s.Entrypoint = []string{"/probe", "serve", "entry"} }),
	}}))
	d := r.phase(1, "one", command.PhaseRunning)
	answers(t, p, 7001, "hello from the environment")
	answers(t, p, 7002, "from the host")
	answers(t, p, 7003, "1000:2000")
	answers(t, p, 7004, "entry")
	s := d.Services["env"]
	if !strings.HasPrefix(s.ImageDigest, "sha256:") || s.StartedAt == nil || time.Since(*s.StartedAt) > time.Minute {
		t.Errorf("%s", asJSON(s))
	}
	out, err := p.Run("inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.Config.WorkingDir}} {{.Config.StopTimeout}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.LogConfig.Size}}", s.ContainerID)
	if err != nil || !strings.HasPrefix(out, "67108864 500000000 /tmp 3") || !strings.HasSuffix(out, "10MB") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := p.Run("volume", "ls", "--quiet"); err != nil || !strings.Contains(out, "fleet_whole_one_state") {
		t.Errorf("volumes %q, %v", out, err)
	}
	// A second agent on the same engine has the same names for itself.
	other := startClean(t, "whole-2", e)
	other.Set(desired(t, 1, services{"one": {service("env", probe, withPort("7011:80"), withCommand("serve", "second"))}}))
	other.phase(1, "one", command.PhaseRunning)
	answers(t, p, 7011, "second")

	r.Set(desired(t, 2, services{"one": {service("env", probe, withPort("127.0.0.1:7001:80"), withCommand("serve", "new"))}}))
	answers(t, p, 7001, "new")
	r.await("one service", func(rep reconcile.Report) bool {
		return len(rep.Deployments["one"].Services) == 1 && rep.Revision == 2
	})
	r.Set(desired(t, 3, nil))
	r.gone(3, "one")
	if list, err := e.Containers(t.Context(), "whole"); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	answers(t, p, 7011, "second")
}

func TestPodmanAgentKilledAtEachStep(t *testing.T) {
	_, e := podman(t)
	killedAtEachStep(t, e, probe, true)
}

func TestPodmanContainerThatEndsIsRestartedAndReported(t *testing.T) {
	_, e := podman(t)
	// Events tell of it, long before the next look without a cause.
	r := startClean(t, "crash", e, func(o *reconcile.Options) { o.Resync = time.Hour })
	r.Set(desired(t, 1, services{
		"bad": {service("loop", probe, withCommand("exit", "7"))}, "good": {service("web", probe)},
		"once": {service("job", probe, withCommand("exit", "0"), withRestart(command.RestartNo))},
	}))
	r.phase(1, "good", command.PhaseRunning)
	r.phase(1, "once", command.PhaseExited)
	rep := r.await("restarts", func(rep reconcile.Report) bool {
		s := rep.Deployments["bad"].Services["loop"]
		return s.Restarts >= 3 && s.Phase == command.PhaseBackoff
	})
	if s := rep.Deployments["bad"].Services["loop"]; s.ExitCode == nil || *s.ExitCode != 7 || !strings.Contains(s.LastError, "exit code 7") {
		t.Errorf("%s", asJSON(s))
	}
	if s := rep.Deployments["good"].Services["web"]; s.Restarts != 0 {
		t.Errorf("%s", asJSON(s))
	}
}

func TestPodmanBadCommandIsReported(t *testing.T) {
	_, e := podman(t)
	r := startClean(t, "badcmd", e)
	r.Set(desired(t, 1, services{"one": {service("web", probe, func(s *command.Service) { s.Entrypoint = []string{"/none"} })}}))
	d := r.phase(1, "one", command.PhaseBackoff)
	if s := d.Services["web"]; !strings.Contains(s.LastError, "/none") {
		t.Errorf("%s", asJSON(s))
	}
}

func TestPodmanPortThatIsTakenIsReportedAndWaitedFor(t *testing.T) {
	p, e := podman(t)
	l, err := p.Listen("tcp", "127.0.0.1:7100")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := startClean(t, "port", e)
	r.Set(desired(t, 1, services{"one": {service("web", probe, withPort("7100:80"), withCommand("serve", "mine"))}, "two": {service("web", probe)}}))
	r.phase(1, "two", command.PhaseRunning)
	d := r.phase(1, "one", command.PhaseBackoff)
	if s := d.Services["web"]; !strings.Contains(s.LastError, "address already in use") || !strings.Contains(s.LastError, "7100") {
		t.Errorf("%s", asJSON(s))
	}
	l.Close()
	d = r.phase(1, "one", command.PhaseRunning)
	answers(t, p, 7100, "mine")
	if s := d.Services["web"]; s.LastError != "" {
		t.Errorf("%s", asJSON(s))
	}
}

func TestPodmanPulls(t *testing.T) {
	p, e := podman(t)
	release := make(chan struct{})
	var slow atomic.Bool
	p.Registry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if slow.Load() && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/slow/blobs/") {
				select {
				case <-release:
				case <-r.Context().Done():
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	})
	const registry = podmantest.RegistryAddress
	digest := p.Push(t, "web:1", "first")
	p.Push(t, "slow:1", "slow")
	slow.Store(true)
	r := startClean(t, "pull", e)
	r.Set(desired(t, 1, services{
		"good": {service("web", registry+"/web:1")}, "slow": {service("web", registry+"/slow:1")},
		"missing": {service("web", registry+"/none:1")}, "wrong": {service("web", "127.0.0.1:1/none:1")},
	}))
	d := r.phase(1, "good", command.PhaseRunning)
	if got := d.Services["web"].ImageDigest; got != digest {
		t.Errorf("digest %s, want %s", got, digest)
	}
	d = r.phase(1, "slow", command.PhasePulling)
	if s := d.Services["web"]; s.Progress == "" {
		t.Errorf("%s", asJSON(s))
	}
	for name, want := range map[string]string{"missing": "none:1", "wrong": "connection refused"} {
		rep := r.await(name+" is reported", func(rep reconcile.Report) bool { return rep.Deployments[name].Services["web"].LastError != "" })
		if s := rep.Deployments[name].Services["web"]; !strings.Contains(s.LastError, want) {
			t.Errorf("%s: %s", name, asJSON(s))
		}
	}
	close(release)
	r.phase(1, "slow", command.PhaseRunning)

	// A tag that moves is followed with a new revision.
	always := func(revision uint64) reconcile.Desired {
		return desired(t, revision, services{"always": {service("web", registry+"/web:1", withPull(command.PullAlways), withCommand("serve", "x"), withPort("7200:80"))}})
	}
	r.Set(always(2))
	r.phase(2, "always", command.PhaseRunning)
	second := p.Push(t, "web:1", "second")
	r.Set(always(3))
	r.await("the new image", func(rep reconcile.Report) bool {
		d := rep.Deployments["always"]
		return d.Phase == command.PhaseRunning && d.Services["web"].ImageDigest == second
	})
	answers(t, p, 7200, "x")
}

func TestPodmanGoesAwayAndComesBack(t *testing.T) {
	p := podmantest.Start(t)
	p.Image(t, probe)
	e := open(t, p)
	r := start(t, "restart", e)
	r.Set(desired(t, 1, services{"one": {service("web", probe, withPort("7300:80"), withCommand("serve", "1"))}}))
	r.phase(1, "one", command.PhaseRunning)
	p.Down()
	d := r.phase(1, "one", command.PhaseRuntimeUnavailable)
	if d.Error == nil || d.Error.Kind != command.KindRuntimeUnavailable {
		t.Errorf("%s", asJSON(d))
	}
	answers(t, p, 7300, "1")
	r.Set(desired(t, 2, services{"one": {service("web", probe, withPort("7300:80"), withCommand("serve", "2"))}}))
	r.phase(2, "one", command.PhaseRuntimeUnavailable)
	if err := p.Up(); err != nil {
		t.Fatal(err)
	}
	r.phase(2, "one", command.PhaseRunning)
	answers(t, p, 7300, "2")
}

// TestPodmanKilledAmidEachOperation kills it at some moment of each, other ones
// in each run; TestPodmanKilledAmidAChange has the moments that are known to hurt.
func TestPodmanKilledAmidEachOperation(t *testing.T) {
	p := podmantest.Start(t)
	p.Image(t, probe)
	p.Registry(t, nil)
	e := open(t, p)
	for i, op := range []string{"create", "start", "stop", "remove", "pull"} {
		t.Run(op, func(t *testing.T) {
			device, port, image, span := "amid-"+op, 7301+i, probe, 120
			if op == "pull" {
				p.PushLarge(t, "large:1", 16<<20)
				image, span = podmantest.RegistryAddress+"/large:1", 600
			}
			doc := func(image, text string) services {
				return services{"one": {service("web", image, withPort(fmt.Sprintf("%d:80", port)), withCommand("serve", text), func(s *command.Service) { s.Volumes = []string{text + ":/data"} })}}
			}
			h := &enginefake.Hooked{Engine: e}
			victim := startClean(t, device, h)
			settle(victim, e, device, 1, doc(probe, "old"))
			var once atomic.Bool
			after := time.Duration(rand.IntN(span)) * time.Millisecond
			h.Before(func(_ context.Context, c enginefake.Call) error {
				if c.Op == op && !once.Swap(true) {
					down := time.AfterFunc(after, p.Down)
					t.Cleanup(func() { down.Stop() })
				}
				return nil
			})
			victim.Set(desired(t, 2, doc(image, "new")))
			victim.phase(2, "one", command.PhaseRuntimeUnavailable)
			p.Down() // it is over by now
			if err := p.Up(); err != nil {
				t.Fatal(err)
			}
			settle(victim, e, device, 2, doc(image, "new"))
			answers(t, p, port, "new")
			if t.Failed() {
				t.Logf("killed %v after the beginning of %s", after, op)
			}
		})
	}
}

func TestPodmanFullDiskIsReportedAndLeavesTheRestRunning(t *testing.T) {
	layer, err := podmantest.Layer()
	if err != nil {
		t.Fatal(err)
	}
	p := podmantest.Start(t, podmantest.Options{StorageBytes: 3*len(layer) + 4<<20})
	p.Image(t, probe)
	p.Registry(t, nil)
	e := open(t, p)
	p.PushLarge(t, "big:1", 4*len(layer))
	r := start(t, "full", e)
	small := service("web", probe, withPort("7400:80"), withCommand("serve", "small"))
	r.Set(desired(t, 1, services{"small": {small}}))
	r.phase(1, "small", command.PhaseRunning)
	r.Set(desired(t, 2, services{"small": {small}, "big": {service("web", podmantest.RegistryAddress+"/big:1")}}))
	rep := r.await("the full disk is reported", func(rep reconcile.Report) bool { return rep.Deployments["big"].Services["web"].LastError != "" })
	if s := rep.Deployments["big"].Services["web"]; !strings.Contains(s.LastError, "no space left on device") {
		t.Errorf("%s", asJSON(s))
	}
	if phase := rep.Deployments["small"].Phase; phase != command.PhaseRunning {
		t.Errorf("small is %s", phase)
	}
	answers(t, p, 7400, "small")
	r.Set(desired(t, 3, services{"small": {small}, "other": {service("web", probe, withPort("7401:80"), withCommand("serve", "other"))}}))
	r.phase(3, "other", command.PhaseRunning)
	r.gone(3, "big")
}

// TestPodmanHealth: Podman makes no health check by itself where there is no
// systemd; the agent asks for each.
func TestPodmanHealth(t *testing.T) {
	p, e := podman(t)
	r := startClean(t, "health", e, func(o *reconcile.Options) { o.CheckHealth = true })
	check := func(path string) func(*command.Service) {
		return func(s *command.Service) {
			s.Health = &command.HealthCheck{Command: []string{"/probe", "exists", path}, IntervalS: 1, Retries: 2}
		}
	}
	r.Set(desired(t, 1, services{"one": {service("good", probe, check("/probe")), service("bad", probe, check("/none")), service("none", probe)}}))
	r.phase(1, "one", command.PhaseRunning)
	health := func(name, want string) {
		t.Helper()
		r.await(name+" is "+want, func(rep reconcile.Report) bool { return rep.Deployments["one"].Services[name].Health == want })
	}
	health("good", "healthy")
	health("bad", "unhealthy")
	// The check tells what is so now.
	if _, err := p.Run("exec", r.report().Deployments["one"].Services["bad"].ContainerID, "/probe", "touch", "/none"); err != nil {
		t.Fatal(err)
	}
	health("bad", "healthy")
	if s := r.report().Deployments["one"].Services["none"]; s.Health != "" {
		t.Errorf("without a check: %s", asJSON(s))
	}
}

// TestPodmanOfManyRevisionsTheLastCounts: two while the first is under way, and a
// thousand in a row.
func TestPodmanOfManyRevisionsTheLastCounts(t *testing.T) {
	p, e := podman(t)
	h := &enginefake.Hooked{Engine: e}
	r := startClean(t, "many", h)
	doc := func(text string) services {
		return services{"one": {service("web", probe, withPort("7600:80"), withCommand("serve", text), func(s *command.Service) { s.Volumes = []string{"data:/data"} })}}
	}
	amid := make(chan struct{}, 1)
	h.Before(func(_ context.Context, c enginefake.Call) error {
		if c.Op == "create" {
			select {
			case amid <- struct{}{}:
			default:
			}
		}
		return nil
	})
	r.Set(desired(t, 1, doc("first")))
	select {
	case <-amid: // the first container is being made
	case <-time.After(patience):
		t.Fatal("nothing is made")
	}
	settle(r, e, "many", 2, doc("second"))
	answers(t, p, 7600, "second")

	before := h.Count(func(c enginefake.Call) bool { return c.Op == "create" })
	for i := range 1000 {
		r.Set(desired(t, uint64(3+i), doc(fmt.Sprint(i))))
	}
	settle(r, e, "many", 1003, doc("last"))
	answers(t, p, 7600, "last")
	if n := h.Count(func(c enginefake.Call) bool { return c.Op == "create" }) - before; n > 100 {
		t.Errorf("%d containers were made for revisions that nobody wants any more", n)
	}
	r.stop()
	out, err := p.Run("ps", "--all", "--external", "--noheading", "--filter", "name=fleet_many_", "--format", "{{.Names}}")
	if lines := strings.Fields(out); err != nil || len(lines) != 1 {
		t.Errorf("there are %q, %v", lines, err)
	}
}

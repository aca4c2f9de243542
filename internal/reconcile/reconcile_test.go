package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// memory is an engine in memory with two images, behind hooks.
func memory() (*enginefake.Memory, *enginefake.Hooked) {
	m := &enginefake.Memory{}
	m.AddImage("a:1", "a1")
	m.AddImage("a:2", "a2")
	return m, &enginefake.Hooked{Engine: m}
}

func TestContainersBecomeWhatIsDesired(t *testing.T) {
	m, _ := memory()
	r := start(t, "d1", m)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1"), service("db", "a:2")}, "two": {service("web", "a:2")}}))
	one := r.phase(1, "one", command.PhaseRunning)
	r.phase(1, "two", command.PhaseRunning)
	if got := names(m.All()); !slices.Equal(got, []string{"one/db running", "one/web running", "two/web running"}) {
		t.Errorf("containers: %v", got)
	}
	web := one.Services["web"]
	if web.ContainerID == "" || web.Image != "a:1" || web.ImageDigest != "sha256:a1" || web.StartedAt == nil || web.ExitCode != nil || web.LastError != "" {
		t.Errorf("status of web: %s", asJSON(web))
	}

	r.Set(desired(t, 2, services{"two": {service("web", "a:1")}}))
	r.gone(2, "one")
	two := r.phase(2, "two", command.PhaseRunning)
	testwait.For(t, patience, "one container", func() bool { return len(m.All()) == 1 })
	if got := m.All()[0]; got.Image != "a:1" || got.ID != two.Services["web"].ContainerID {
		t.Errorf("%+v", got)
	}

	// A new revision with the same content touches nothing.
	before := m.All()[0].ID
	r.Set(desired(t, 3, services{"two": {service("web", "a:1")}}))
	r.phase(3, "two", command.PhaseRunning)
	if after := m.All()[0].ID; after != before {
		t.Error("a container was replaced though nothing changed")
	}

	r.Set(desired(t, 4, nil))
	r.gone(4, "two")
	if got := m.All(); len(got) != 0 {
		t.Errorf("after a delete: %v", names(got))
	}
}

func TestNothingDesiredMeansKeepWhatRuns(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", m)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	r.stop()
	next := start(t, "d1", h)
	next.await("ready", func(rep reconcile.Report) bool { return rep.Runtime == command.RuntimeReady })
	if n := h.Count(enginefake.Call.Writes); n != 0 || len(m.All()) != 1 {
		t.Errorf("%d writes, %v", n, names(m.All()))
	}
}

// writes records the changes of containers in their order, as
// "start web a:1".
type writes struct {
	mu   sync.Mutex
	list []string
}

func (w *writes) hook(m *enginefake.Memory) enginefake.Hook {
	return func(_ context.Context, c enginefake.Call) error {
		for _, d := range m.All() {
			if c.Writes() && d.ID == c.Target {
				w.mu.Lock()
				w.list = append(w.list, fmt.Sprintf("%s %s %s", c.Op, d.Labels.Service, d.Image))
				w.mu.Unlock()
			}
		}
		return nil
	}
}

func TestTheNewContainerStartsBeforeTheOldEndsWherePortsAllow(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*command.Service)
		early  bool
	}{
		"no port":         {func(*command.Service) {}, true},
		"same port":       {withPort("80:80"), false},
		"same volume":     {func(s *command.Service) { s.Volumes = []string{"data:/data"} }, false},
		"volume, reading": {func(s *command.Service) { s.Volumes = []string{"data:/data:ro"} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			m, h := memory()
			r := start(t, "d1", h)
			r.Set(desired(t, 1, services{"one": {service("web", "a:1", c.change)}}))
			r.phase(1, "one", command.PhaseRunning)
			var got writes
			h.Before(got.hook(m))
			r.Set(desired(t, 2, services{"one": {service("web", "a:2", c.change)}}))
			testwait.For(t, patience, "only the new one", func() bool {
				all := m.All()
				return len(all) == 1 && all[0].Image == "a:2" && all[0].State == engine.StateRunning
			})
			r.stop()
			began, ended := slices.Index(got.list, "start web a:2"), slices.Index(got.list, "stop web a:1")
			if len(got.list) != 3 || began < 0 || ended < 0 || (began < ended) != c.early {
				t.Errorf("got %q", got.list)
			}
		})
	}
}

func TestAPortPassesFromOneDeploymentToAnother(t *testing.T) {
	m, _ := memory()
	r := start(t, "d1", m)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1", withPort("80:80"))}}))
	r.phase(1, "one", command.PhaseRunning)
	r.Set(desired(t, 2, services{"other": {service("web", "a:1", withPort("80:8080"))}}))
	d := r.phase(2, "other", command.PhaseRunning)
	if d.Services["web"].LastError != "" || d.Services["web"].Restarts != 0 {
		t.Errorf("it was tried before the port was free: %s", asJSON(d))
	}
	r.gone(2, "one")
}

func TestRemovalIsTheReverseOfCreation(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("db", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	r.Set(desired(t, 2, services{"one": {service("db", "a:1"), service("app", "a:1")}}))
	r.phase(2, "one", command.PhaseRunning)
	r.Set(desired(t, 3, services{"one": {service("db", "a:1"), service("app", "a:1"), service("web", "a:1")}}))
	r.phase(3, "one", command.PhaseRunning)
	var got writes
	h.Before(got.hook(m))
	r.Set(desired(t, 4, nil))
	r.gone(4, "one")
	r.stop()
	want := []string{"stop web a:1", "remove web a:1", "stop app a:1", "remove app a:1", "stop db a:1", "remove db a:1"}
	if !slices.Equal(got.list, want) {
		t.Errorf("got %q, want %q", got.list, want)
	}
}

func TestAnImageThatCannotBeHadLeavesTheOldContainerRunning(t *testing.T) {
	m, _ := memory()
	r := start(t, "d1", m)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}, "two": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	r.Set(desired(t, 2, services{"one": {service("web", "none:1")}, "two": {service("web", "a:2")}, "three": {service("web", "none:2", withPull(command.PullNever))}}))
	r.phase(2, "two", command.PhaseRunning)
	d := r.phase(2, "one", command.PhaseBackoff)
	if s := d.Services["web"]; !strings.Contains(s.LastError, "manifest unknown") || s.ContainerID == "" || s.NextTry == nil || s.Image != "none:1" {
		t.Errorf("%s", asJSON(s))
	}
	if d := r.phase(2, "three", command.PhaseBackoff); !strings.Contains(d.Services["web"].LastError, "never pulled") {
		t.Errorf("%s", asJSON(d))
	}
	if got := names(m.All()); !slices.Contains(got, "one/web running") {
		t.Errorf("the old container does not run: %v", got)
	}
	m.Publish("none:1", "n1")
	d = r.phase(2, "one", command.PhaseRunning)
	if s := d.Services["web"]; s.LastError != "" || s.ImageDigest != "sha256:n1" {
		t.Errorf("%s", asJSON(s))
	}
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy string
		code   int
		again  bool
		phase  command.Phase
	}{
		{"", 0, true, ""}, {command.RestartAlways, 1, true, ""}, {command.RestartUnlessStopped, 0, true, ""},
		{command.RestartOnFailure, 1, true, ""}, {command.RestartOnFailure, 0, false, command.PhaseExited},
		{command.RestartNo, 0, false, command.PhaseExited}, {command.RestartNo, 3, false, command.PhaseFailed},
	} {
		t.Run(fmt.Sprintf("%s %d", c.policy, c.code), func(t *testing.T) {
			m, h := memory()
			r := start(t, "d1", h)
			r.Set(desired(t, 1, services{"one": {service("web", "a:1", withRestart(c.policy))}}))
			r.phase(1, "one", command.PhaseRunning)
			id := m.All()[0].ID
			m.Exit(id, c.code)
			if c.again {
				rep := r.await("running again", func(rep reconcile.Report) bool {
					s := rep.Deployments["one"].Services["web"]
					return s.Phase == command.PhaseRunning && s.Restarts == 1
				})
				if s := rep.Deployments["one"].Services["web"]; s.ContainerID != id || !strings.Contains(s.LastError, fmt.Sprint("exit code ", c.code)) {
					t.Errorf("%s", asJSON(s))
				}
				return
			}
			d := r.phase(1, "one", c.phase)
			if s := d.Services["web"]; s.ExitCode == nil || *s.ExitCode != c.code {
				t.Errorf("%s", asJSON(s))
			}
			// Nor does the next agent run it again.
			r.stop()
			next := start(t, "d1", h)
			next.Set(desired(t, 1, services{"one": {service("web", "a:1", withRestart(c.policy))}}))
			next.phase(1, "one", c.phase)
			if n := h.Count(func(c enginefake.Call) bool { return c.Op == "start" }); n != 1 {
				t.Errorf("started %d times", n)
			}
		})
	}
}

func TestACrashLoopIsSlowedDownAndDisturbsNobody(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", h, func(o *reconcile.Options) { o.BackoffMin, o.BackoffMax = 20*time.Millisecond, 10*time.Second })
	h.After(func(_ context.Context, c enginefake.Call) error {
		if c.Op == "start" {
			for _, d := range m.All() {
				if d.ID == c.Target && d.Labels.Deployment == "bad" {
					m.Exit(d.ID, 7)
				}
			}
		}
		return nil
	})
	r.Set(desired(t, 1, services{"bad": {service("web", "a:1")}, "good": {service("web", "a:1")}}))
	r.phase(1, "good", command.PhaseRunning)
	rep := r.await("four restarts", func(rep reconcile.Report) bool {
		s := rep.Deployments["bad"].Services["web"]
		return s.Restarts == 4 && s.Phase == command.PhaseBackoff
	})
	s := rep.Deployments["bad"].Services["web"]
	if s.ExitCode == nil || *s.ExitCode != 7 || !strings.Contains(s.LastError, "exit code 7") || s.NextTry == nil {
		t.Errorf("%s", asJSON(s))
	}
	// 20, 40, 80 and 160 ms went by; the next one is 320 ms away.
	if wait := time.Until(*s.NextTry); wait < 100*time.Millisecond || wait > 400*time.Millisecond {
		t.Errorf("the next try is in %v", wait)
	}
	if good := rep.Deployments["good"]; good.Phase != command.PhaseRunning || good.Services["web"].Restarts != 0 {
		t.Errorf("%s", asJSON(good))
	}
	// A new spec is tried at once.
	h.After(nil)
	r.Set(desired(t, 2, services{"bad": {service("web", "a:2")}}))
	began := time.Now()
	r.phase(2, "bad", command.PhaseRunning)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the new spec waited %v for the old one's back-off", took)
	}
}

func TestEndsAreForgottenByAContainerThatRuns(t *testing.T) {
	m, _ := memory()
	r := start(t, "d1", m, func(o *reconcile.Options) { o.BackoffReset = 150 * time.Millisecond })
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	m.Exit(m.All()[0].ID, 1)
	r.await("an error", func(rep reconcile.Report) bool { return rep.Deployments["one"].Services["web"].LastError != "" })
	r.await("no error any more", func(rep reconcile.Report) bool {
		s := rep.Deployments["one"].Services["web"]
		return s.Phase == command.PhaseRunning && s.LastError == "" && s.Restarts == 1
	})
}

func TestAnEngineThatIsAwayIsReportedAndWaitedFor(t *testing.T) {
	m, h := memory()
	var away atomic.Bool
	h.Before(func(context.Context, enginefake.Call) error {
		if away.Load() {
			return fmt.Errorf("dial: %w", engine.ErrUnavailable)
		}
		return nil
	})
	away.Store(true)
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}, "odd": nil}))
	d := r.phase(1, "one", command.PhaseRuntimeUnavailable)
	if d.Error == nil || d.Error.Kind != command.KindRuntimeUnavailable {
		t.Errorf("%s", asJSON(d))
	}
	r.phase(1, "odd", command.PhaseRejected)
	away.Store(false)
	r.phase(1, "one", command.PhaseRunning)
	away.Store(true)
	rep := r.await("away again", func(rep reconcile.Report) bool { return rep.Runtime == command.RuntimeUnavailable })
	if s := rep.Deployments["one"].Services["web"]; s.ContainerID != m.All()[0].ID {
		t.Errorf("what was known of the container is lost: %s", asJSON(s))
	}
	away.Store(false)
	r.phase(1, "one", command.PhaseRunning)
	if len(m.All()) != 1 {
		t.Errorf("%v", names(m.All()))
	}
}

func TestTheAnswerOfACreateThatIsLostMakesNoSecondContainer(t *testing.T) {
	m, h := memory()
	var lost atomic.Int32
	h.After(func(_ context.Context, c enginefake.Call) error {
		if c.Op == "create" && lost.Add(1) == 1 {
			return fmt.Errorf("read: %w", engine.ErrUnavailable)
		}
		return nil
	})
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	if len(m.All()) != 1 || lost.Load() != 1 {
		t.Errorf("%v after %d creates", names(m.All()), lost.Load())
	}
}

func TestOtherPeoplesContainersAreNeverTouched(t *testing.T) {
	m, h := memory()
	other, err := m.Create(t.Context(), engine.Spec{Name: "fleet_d2_one_web", Labels: engine.Labels{Device: "d2", Deployment: "one", Service: "web"}, Service: command.Service{Image: "a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := m.Create(t.Context(), engine.Spec{Name: "postgres", Service: command.Service{Image: "a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	name := ""
	for _, d := range m.All() {
		if d.Labels.Device == "d1" {
			name = d.Name
		}
	}
	r.Set(desired(t, 2, nil))
	r.gone(2, "one")
	// Not even one that has the name of ours.
	squatter, err := m.Create(t.Context(), engine.Spec{Name: name, Service: command.Service{Image: "a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	r.Set(desired(t, 3, services{"one": {service("web", "a:1")}, "two": {service("web", "a:1")}}))
	d := r.phase(3, "one", command.PhaseBackoff)
	if !strings.Contains(d.Services["web"].LastError, "remove or rename it") {
		t.Errorf("%s", asJSON(d))
	}
	r.phase(3, "two", command.PhaseRunning)
	r.stop()
	for _, c := range h.Calls() {
		if c.Op != "create" && c.Writes() && (c.Target == other || c.Target == stranger || c.Target == squatter || c.Target == name) {
			t.Errorf("%+v on somebody else's container", c)
		}
	}
}

// A device may forbid what a deployer asks for: the deployment is rejected, whole,
// and those beside it run.
func TestWhatThePolicyForbidsIsNeverMade(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", h, func(o *reconcile.Options) { o.Allow = workload.Policy{Volumes: []string{"/srv/*"}}.Service })
	mount := func(volumes ...string) func(*command.Service) {
		return func(s *command.Service) { s.Volumes = volumes }
	}
	r.Set(desired(t, 1, services{
		"root": {service("web", "a:1"), service("db", "a:1", mount("/:/host"))}, "socket": {service("web", "a:1", mount("/run/podman/podman.sock:/s:ro"))},
		"deep": {service("web", "a:1", mount("/srv/a/link:/x"))}, "itself": {service("web", "a:1", mount("/srv:/x"))},
		"good": {service("web", "a:1", mount("/srv/a:/x", "data:/data"))},
	}))
	r.phase(1, "good", command.PhaseRunning)
	for _, name := range []string{"root", "socket", "deep", "itself"} {
		d := r.phase(1, name, command.PhaseRejected)
		if d.Error == nil || d.Error.Kind != command.KindDenied || !strings.Contains(d.Error.Message, "deployments."+name+".services[") {
			t.Errorf("%s: %s", name, asJSON(d))
		}
	}
	r.stop()
	for _, d := range m.All() {
		if d.Labels.Deployment != "good" {
			t.Errorf("%s was made", d.Name)
		}
	}
}

// TestWhatThePolicyForbidsLaterRunsOn, and the status says so: that it is rejected,
// why, and which container it is that runs.
func TestWhatThePolicyForbidsLaterRunsOn(t *testing.T) {
	m, _ := memory()
	mount := func(s *command.Service) { s.Volumes = []string{"/srv/a:/x"} }
	doc := desired(t, 1, services{"one": {service("web", "a:1", mount)}})
	r := start(t, "d1", m)
	r.Set(doc)
	id := r.phase(1, "one", command.PhaseRunning).Services["web"].ContainerID
	r.stop()
	next := start(t, "d1", m, func(o *reconcile.Options) { o.Allow = workload.Policy{Volumes: []string{}}.Service })
	next.Set(doc)
	d := next.phase(1, "one", command.PhaseRejected)
	if d.Error == nil || d.Error.Kind != command.KindDenied || !strings.Contains(d.Error.Message, "deployments.one.services[0]") ||
		!strings.Contains(d.Error.Message, "policy.volumes") || !strings.Contains(d.Error.Message, "goes on") {
		t.Errorf("%s", asJSON(d))
	}
	if s := d.Services["web"]; s.ContainerID != id || s.Phase != command.PhaseRunning || len(m.All()) != 1 {
		t.Errorf("%s", asJSON(d))
	}
}

func TestARejectedDeploymentGoesOnAsItWas(t *testing.T) {
	m, _ := memory()
	r := start(t, "d1", m)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}, "two": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	r.phase(1, "two", command.PhaseRunning)
	bad := desired(t, 2, services{"one": {service("web", "a:2", withPort("80"))}, "two": {service("web", "a:2")}})
	r.Set(bad)
	d := r.phase(2, "one", command.PhaseRejected)
	if d.Error.Kind != command.KindBadRequest || !strings.HasPrefix(d.Error.Message, "deployments.one.services[0].ports[0]: ") {
		t.Errorf("%s", asJSON(d))
	}
	r.phase(2, "two", command.PhaseRunning)
	var id string
	for _, c := range m.All() {
		if c.Labels.Deployment == "one" {
			id = c.ID
		}
	}
	// It is even restarted, also by the next agent.
	r.stop()
	next := start(t, "d1", m)
	next.Set(bad)
	next.phase(2, "one", command.PhaseRejected)
	m.Exit(id, 1)
	next.await("started again", func(rep reconcile.Report) bool {
		s := rep.Deployments["one"].Services["web"]
		return s.Phase == command.PhaseRunning && s.Restarts == 1 && s.ContainerID == id && s.Image == "a:1"
	})
}

func TestOfRevisionsInQuickSuccessionTheLastCounts(t *testing.T) {
	m, h := memory()
	release := make(chan struct{})
	h.Before(func(ctx context.Context, c enginefake.Call) error {
		if c.Op == "pull" && c.Target == "slow:1" {
			select { // only the end of the step ends it
			case <-ctx.Done():
				return ctx.Err()
			case <-release:
				return errors.New("the pull of a revision that is over went on")
			}
		}
		return nil
	})
	defer close(release)
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("web", "slow:1")}, "two": {service("web", "a:1")}}))
	d := r.phase(1, "one", command.PhasePulling)
	if s := d.Services["web"]; s.Phase != command.PhasePulling || s.Progress == "" {
		t.Errorf("%s", asJSON(s))
	}
	r.phase(1, "two", command.PhaseRunning) // not held up
	r.Set(desired(t, 2, services{"one": {service("web", "a:1")}}))
	r.phase(2, "one", command.PhaseRunning)

	for i := range 1000 {
		image := "a:1"
		if i%2 == 0 {
			image = "a:2"
		}
		r.Set(desired(t, uint64(3+i), services{"one": {service("web", image, func(s *command.Service) { s.Env = map[string]string{"N": fmt.Sprint(i)} })}}))
	}
	r.phase(1002, "one", command.PhaseRunning)
	testwait.For(t, patience, "one container", func() bool { return len(m.All()) == 1 })
	if n := h.Count(func(c enginefake.Call) bool { return c.Op == "create" }); n > 200 {
		t.Errorf("%d containers were made for revisions that nobody wants any more", n)
	}
}

func TestPullAlwaysFollowsATag(t *testing.T) {
	m := &enginefake.Memory{}
	m.Publish("a:latest", "first")
	r := start(t, "d1", m)
	doc := func(revision uint64) reconcile.Desired {
		return desired(t, revision, services{"one": {service("web", "a:latest", withPull(command.PullAlways), withPort("80:80"))}})
	}
	r.Set(doc(1))
	r.phase(1, "one", command.PhaseRunning)
	m.Publish("a:latest", "second")
	r.Set(doc(2))
	testwait.For(t, patience, "the new image", func() bool {
		all := m.All()
		return len(all) == 1 && all[0].ImageID == "second" && all[0].State == engine.StateRunning
	})
	// The same image again: nothing is replaced.
	id := m.All()[0].ID
	r.Set(doc(3))
	r.phase(3, "one", command.PhaseRunning)
	r.stop()
	if all := m.All(); len(all) != 1 || all[0].ID != id {
		t.Errorf("%v", names(all))
	}
}

// TestPullAlwaysWithoutTheRegistry: what is there goes on, and is restarted.
func TestPullAlwaysWithoutTheRegistry(t *testing.T) {
	m := &enginefake.Memory{}
	m.Publish("a:latest", "first")
	h := &enginefake.Hooked{Engine: m}
	doc := func(revision uint64) reconcile.Desired {
		return desired(t, revision, services{
			"one": {service("web", "a:latest", withPull(command.PullAlways))},
			"job": {service("web", "a:latest", withPull(command.PullAlways), withRestart(command.RestartNo))},
		})
	}
	r := start(t, "d1", m)
	r.Set(doc(1))
	r.phase(1, "one", command.PhaseRunning)
	r.phase(1, "job", command.PhaseRunning)
	r.stop()
	m.Unpublish("a:latest")
	var job string
	for _, d := range m.All() {
		m.Exit(d.ID, 0)
		if d.Labels.Deployment == "job" {
			job = d.ID
		}
	}
	next := start(t, "d1", h)
	next.Set(doc(1))
	next.await("running, and what is wrong", func(rep reconcile.Report) bool {
		s := rep.Deployments["one"].Services["web"]
		return s.Phase == command.PhaseRunning && strings.Contains(s.LastError, "manifest unknown")
	})
	next.await("what is wrong with the job", func(rep reconcile.Report) bool {
		s := rep.Deployments["job"].Services["web"]
		return s.Phase == command.PhaseExited && strings.Contains(s.LastError, "manifest unknown")
	})
	m.Publish("a:latest", "first")
	next.await("all is well", func(rep reconcile.Report) bool {
		return rep.Deployments["one"].Services["web"].LastError == "" && rep.Deployments["job"].Services["web"].LastError == ""
	})
	if n := h.Count(func(c enginefake.Call) bool { return c.Op == "start" && c.Target == job }); n != 0 {
		t.Errorf("a job that had ended was started %d times more", n)
	}
}

func TestADeadContainerIsReplaced(t *testing.T) {
	m, _ := memory()
	r := start(t, "d1", m)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	dead := m.All()[0].ID
	m.SetState(dead, engine.StateDead)
	testwait.For(t, patience, "another container", func() bool {
		all := m.All()
		return len(all) == 1 && all[0].ID != dead && all[0].State == engine.StateRunning
	})
}

func TestIdleMeansNoWriteAndNoPoll(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", h, func(o *reconcile.Options) { o.Resync = time.Hour })
	var list []command.Service
	for i := range 50 {
		list = append(list, service(fmt.Sprintf("s%d", i), "a:1"))
	}
	r.Set(desired(t, 1, services{"one": list}))
	r.phase(1, "one", command.PhaseRunning)
	calls := func() int { return len(h.Calls()) }
	settled := calls()
	testwait.For(t, patience, "quiet", func() bool {
		n := calls()
		quiet := n == settled
		settled = n
		return quiet
	})
	reports := len(r.reports)
	r.Set(desired(t, 1, services{"one": list})) // a pass with nothing to do
	testwait.For(t, patience, "a pass", func() bool { return calls() > settled })
	r.stop()
	if got := h.Calls()[settled:]; len(got) != 1 || got[0].Op != "list" {
		t.Errorf("a pass with nothing to do made %v", got)
	}
	if len(r.reports) != reports || len(m.All()) != 50 {
		t.Errorf("%d reports about nothing", len(r.reports)-reports)
	}
}

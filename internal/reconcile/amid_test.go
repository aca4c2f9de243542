//go:build linux

package reconcile_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestPodmanKilledAmidAChange: Podman writes down what it does in several places,
// one after the other. What it leaves when it is killed in between it does not put
// right by itself.
func TestPodmanKilledAmidAChange(t *testing.T) {
	p := podmantest.Start(t)
	p.Image(t, probe)
	e := open(t, p)
	run := func(args ...string) {
		t.Helper()
		if _, err := p.Run(args...); err != nil {
			t.Fatal(err)
		}
	}
	doc := services{"one": {service("web", probe, withPort("7500:80"), withCommand("serve", "made"))}}
	// made makes the container, and gives its id.
	made := func(t *testing.T, device string, started bool) string {
		h := &enginefake.Hooked{Engine: e}
		h.Before(func(_ context.Context, c enginefake.Call) error {
			if c.Op == "start" && !started {
				return errors.New("not now")
			}
			return nil
		})
		r := start(t, device, h)
		r.Set(desired(t, 1, doc))
		rep := r.await("made", func(rep reconcile.Report) bool {
			s := rep.Deployments["one"].Services["web"]
			return s.ContainerID != "" && (s.StartedAt != nil || strings.Contains(s.LastError, "not now"))
		})
		r.stop()
		return rep.Deployments["one"].Services["web"].ContainerID
	}
	for _, c := range []struct {
		amid  string
		leave func(t *testing.T, device string)
	}{
		// Its name is taken, and it is in no list.
		{"create", func(t *testing.T, device string) { p.Rollback(t, func() { made(t, device, false) }) }},
		// The program runs, which Podman does not know.
		{"start", func(t *testing.T, device string) {
			id := made(t, device, false)
			run("init", id)
			p.Rollback(t, func() { run("start", id) })
		}},
		// Its monitor has the port, which Podman does not know; so Podman cannot start it.
		{"start, early", func(t *testing.T, device string) {
			id := made(t, device, false)
			p.Rollback(t, func() { run("init", id) })
		}},
		// There is no list at all any more, as long as it can contain the container.
		{"removal", func(t *testing.T, device string) {
			id := made(t, device, true)
			run("create", "--name", "stranger", "--label", "dev.harmony.fleet.device="+device, probe)
			run("stop", "--time", "0", id)
			p.Rollback(t, func() { run("rm", id, "stranger") })
		}},
	} {
		t.Run(c.amid, func(t *testing.T) {
			device := "amid-" + strings.ReplaceAll(c.amid, ", ", "-")
			c.leave(t, device)
			r := start(t, device, e)
			settle(r, e, device, 1, doc)
			answers(t, p, 7500, "made")
			r.stop()
			clear(t, e, device)
			if c.amid == "removal" {
				run("container", "exists", "stranger")
			}
			out, err := p.Run("ps", "--all", "--external", "--noheading", "--filter", "name=fleet_")
			if err != nil && c.amid != "removal" || strings.Contains(out, device) {
				t.Errorf("left: %s, %v", out, err)
			}
		})
	}
}

// TestPodmanKilledAmidAStop: the container has its port until it is removed, while
// Podman says that it is being stopped, for ever.
func TestPodmanKilledAmidAStop(t *testing.T) {
	p := podmantest.Start(t)
	p.Image(t, probe)
	e := open(t, p)
	r := start(t, "amid-stop", e)
	r.Set(desired(t, 1, services{"one": {service("web", probe, withPort("7500:80"), withCommand("stubborn"), func(s *command.Service) { s.StopTimeoutS = 3 })}}))
	id := r.phase(1, "one", command.PhaseRunning).Services["web"].ContainerID
	r.stop()
	ended := make(chan error, 1)
	go func() { ended <- e.Stop(context.Background(), id) }()
	testwait.For(t, patience, "it is being stopped", func() bool {
		d, err := e.Inspect(t.Context(), id)
		return err == nil && d.State == engine.StateStopping
	})
	p.Down()
	if err := <-ended; !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("the stop was not interrupted: %v", err)
	}
	if err := p.Up(); err != nil {
		t.Fatal(err)
	}
	doc := services{"one": {service("web", probe, withPort("7500:80"), withCommand("serve", "next"))}}
	next := start(t, "amid-stop", e)
	settle(next, e, "amid-stop", 2, doc)
	answers(t, p, 7500, "next")
}

// TestPodmanTheNameIsSomebodyElses: what Podman does know is no leftover, however
// long it is in the way.
func TestPodmanTheNameIsSomebodyElses(t *testing.T) {
	p, e := podman(t)
	doc := services{"one": {service("web", probe)}}
	r := startClean(t, "squat", e)
	name := ""
	settle(r, e, "squat", 1, doc)
	if list, err := e.Containers(t.Context(), "squat"); err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	} else {
		name = list[0].Name
	}
	settle(r, e, "squat", 2, nil)
	if _, err := p.Run("create", "--name", name, probe); err != nil {
		t.Fatal(err)
	}
	r.Set(desired(t, 3, doc))
	began := time.Now()
	r.await("it was tried for long", func(rep reconcile.Report) bool {
		s := rep.Deployments["one"].Services["web"]
		return s.Phase == command.PhaseBackoff && strings.Contains(s.LastError, "remove or rename it") && time.Since(began) > time.Second
	})
	if _, err := p.Run("container", "exists", name); err != nil {
		t.Error(err)
	}
	if _, err := p.Run("rm", name); err != nil {
		t.Fatal(err)
	}
	settle(r, e, "squat", 3, doc)
}

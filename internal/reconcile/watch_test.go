package reconcile_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

// goneAway is an engine that answered once and is away now: its stream of events
// begins, as far as a client can tell, and ends at once.
type goneAway struct {
	reconcile.Engine
	watches chan time.Time
}

func (g goneAway) Watch(ctx context.Context, _ string, changed func(string)) error {
	changed("")
	select {
	case g.watches <- time.Now():
		return fmt.Errorf("dial: %w", engine.ErrUnavailable)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestAnEngineThatHasGoneIsAskedLessAndLess(t *testing.T) {
	m, _ := memory()
	g := goneAway{m, make(chan time.Time)}
	r := start(t, "d1", g, func(o *reconcile.Options) { o.RetryMin, o.RetryMax = 2*time.Millisecond, time.Minute })
	began := <-g.watches
	var last time.Time
	for range 7 {
		select {
		case last = <-g.watches:
		case <-time.After(patience):
			t.Fatal("the engine is not asked any more")
		}
	}
	// 2, 4, … 128 ms, each less a half at most.
	if took := last.Sub(began); took < 127*time.Millisecond {
		t.Errorf("asked seven more times within %v", took)
	}
	r.stop()
}

// TestAnEventIsNotForgottenByALookThatFails: a container that ended and runs again
// looks the same in a list.
func TestAnEventIsNotForgottenByALookThatFails(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
	id := r.phase(1, "one", command.PhaseRunning).Services["web"].ContainerID

	held, release := make(chan struct{}, 1), make(chan struct{})
	var failed atomic.Bool
	h.Before(func(ctx context.Context, c enginefake.Call) error {
		switch {
		case c.Op == "list":
			select {
			case held <- struct{}{}:
			default:
			}
			select {
			case <-release:
			case <-ctx.Done():
			}
		case c.Op == "inspect" && !failed.Swap(true):
			return fmt.Errorf("dial: %w", engine.ErrUnavailable)
		}
		return nil
	})
	select {
	case <-held:
	case <-time.After(patience):
		t.Fatal("no pass was made")
	}
	for _, f := range []func(context.Context, string) error{m.Stop, m.Start} {
		if err := f(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	want := m.All()[0].StartedAt
	close(release)
	r.await("the second start is known", func(rep reconcile.Report) bool {
		at := rep.Deployments["one"].Services["web"].StartedAt
		return at != nil && at.Equal(want)
	})
	if !failed.Load() {
		t.Error("no look failed")
	}
}

// TestAServiceIsReportedUntilItIsGone: its deployment is not as desired while a
// service that is not desired any more still runs.
func TestAServiceIsReportedUntilItIsGone(t *testing.T) {
	m, h := memory()
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("db", "a:1"), service("app", "a:1")}}))
	r.await("both run", func(rep reconcile.Report) bool {
		s := rep.Deployments["one"].Services
		return s["db"].Phase == command.PhaseRunning && s["app"].Phase == command.PhaseRunning
	})
	release := make(chan struct{})
	h.Before(func(ctx context.Context, c enginefake.Call) error {
		if c.Op == "stop" {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return nil
	})
	r.Set(desired(t, 2, services{"one": {service("db", "a:1")}}))
	d := r.phase(2, "one", command.PhaseRemoving)
	if d.Services["app"].Phase != command.PhaseRemoving || d.Services["db"].Phase != command.PhaseRunning {
		t.Errorf("%s", asJSON(d))
	}
	close(release)
	d = r.phase(2, "one", command.PhaseRunning)
	if len(d.Services) != 1 || len(m.All()) != 1 {
		t.Errorf("%s, containers %v", asJSON(d), names(m.All()))
	}
}

// TestEveryCallHasADeadline: an engine that hangs holds nothing up for ever. A
// pull is bounded by its own progress, and the stream of events is only a hint.
func TestEveryCallHasADeadline(t *testing.T) {
	m, h := memory()
	m.Publish("a:1", "a1")
	h.Before(func(ctx context.Context, c enginefake.Call) error {
		if _, bounded := ctx.Deadline(); !bounded && c.Op != "watch" && c.Op != "pull" {
			t.Errorf("%s %s has no deadline", c.Op, c.Target)
		}
		return nil
	})
	r := start(t, "d1", h)
	r.Set(desired(t, 1, services{"one": {service("web", "a:1", withPull(command.PullAlways)), service("db", "a:1")}}))
	r.phase(1, "one", command.PhaseRunning)
	r.Set(desired(t, 2, nil))
	r.gone(2, "one")
	r.stop()
}

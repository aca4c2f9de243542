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
	"github.com/harmony-fleet/fleet/internal/testwait"
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
		if end, bounded := ctx.Deadline(); (!bounded || time.Until(end) > time.Hour) && c.Op != "watch" && c.Op != "pull" {
			t.Errorf("%s %s has the deadline %v", c.Op, c.Target, end)
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

// deaf is an engine whose stream of events can be made to lose them, and to end.
type deaf struct {
	reconcile.Engine
	lose atomic.Bool
	end  chan struct{}
}

func (d *deaf) Watch(ctx context.Context, device string, changed func(string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-d.end:
		case <-ctx.Done():
		}
	}()
	return d.Engine.Watch(ctx, device, func(id string) {
		if id == "" || !d.lose.Load() {
			changed(id)
		}
	})
}

// TestAnEngineThatTellsOfEventsIsNotPolled, and is all the same believed for a
// while only.
func TestAnEngineThatTellsOfEventsIsNotPolled(t *testing.T) {
	for _, c := range []struct {
		name   string
		relist time.Duration
		cause  func(*deaf)
	}{
		{"an event", time.Hour, nil},
		{"the stream begins anew", time.Hour, func(d *deaf) { d.end <- struct{}{} }},
		{"the list is old", 3 * time.Second, func(*deaf) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, h := memory()
			d := &deaf{Engine: h, end: make(chan struct{})}
			var passes atomic.Int32
			r := start(t, "d1", d, func(o *reconcile.Options) {
				o.Resync, o.Relist = 20*time.Millisecond, c.relist
				o.Now = func() time.Time { passes.Add(1); return time.Now() }
			})
			r.Set(desired(t, 1, services{"one": {service("web", "a:1")}}))
			r.phase(1, "one", command.PhaseRunning)
			lists := func() int { return h.Count(func(c enginefake.Call) bool { return c.Op == "list" }) }
			seen, since := 0, int32(0)
			testwait.For(t, patience, "20 passes without a list", func() bool {
				if n := lists(); n != seen {
					seen, since = n, passes.Load()
				}
				return passes.Load()-since > 40 // each asks for the time twice at most
			})
			d.lose.Store(c.cause != nil)
			m.Exit(m.All()[0].ID, 1)
			if c.cause != nil {
				c.cause(d)
			}
			r.await("started again", func(rep reconcile.Report) bool {
				s := rep.Deployments["one"].Services["web"]
				return s.Phase == command.PhaseRunning && s.Restarts == 1
			})
		})
	}
}

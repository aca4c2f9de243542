package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// killer stops an agent's way to its engine at the n-th change, for good: to the
// engine this is what a killed agent looks like.
type killer struct {
	n    int32 // 1: the first change
	mid  bool  // while the change is made; else right after it
	seen atomic.Int32
	dead chan struct{}
}

var errKilled = errors.New("killed")

func (k *killer) hooks(h *enginefake.Hooked) {
	k.dead = make(chan struct{})
	die := func() error {
		select {
		case <-k.dead:
		default:
			close(k.dead)
		}
		return errKilled
	}
	h.Before(func(ctx context.Context, c enginefake.Call) error {
		select {
		case <-k.dead:
			return errKilled
		default:
		}
		if k.mid && c.Writes() && k.seen.Add(1) == k.n {
			_ = die() // the call itself goes on
		}
		return nil
	})
	h.After(func(_ context.Context, c enginefake.Call) error {
		select {
		case <-k.dead:
			return errKilled
		default:
		}
		if !k.mid && c.Writes() && k.seen.Add(1) == k.n {
			return die()
		}
		return nil
	})
}

// killedAtEachStep brings a device to the first state and then to the second one,
// killing the agent at each change on the way, and waits until the next agent
// has put that right.
func killedAtEachStep(t *testing.T, e reconcile.Engine, image string, real bool) {
	first := services{"one": {service("web", image, withCommand("serve", "1"), withPort("8001:80"))}, "two": {service("x", image)}}
	second := services{"one": {service("web", image, withCommand("serve", "2"), withPort("8001:80"))}, "three": {service("y", image)}}
	for _, c := range []struct {
		name          string
		before, after services
		mid           bool
	}{
		{"replacing", first, second, false}, {"replacing, amid", first, second, true},
		{"making", nil, first, false}, {"making, amid", nil, first, true}, {"removing", first, nil, false},
	} {
		if real && c.before == nil || real && c.after == nil {
			continue // the steps of these are among those of replacing
		}
		name := c.name
		t.Run(name, func(t *testing.T) {
			for n := int32(1); ; n++ {
				device := fmt.Sprintf("kill-%d-%d", n, time.Now().UnixNano())
				if c.before != nil {
					r := start(t, device, e)
					settle(r, e, device, 1, c.before)
					r.stop()
				}
				k := &killer{n: n, mid: c.mid}
				h := &enginefake.Hooked{Engine: e}
				k.hooks(h)
				victim := start(t, device, h)
				victim.Set(desired(t, 2, c.after))
				over := false
				testwait.For(t, patience, "killed", func() bool {
					select {
					case <-k.dead:
						return true
					default:
					}
					over = settled(t, e, device, victim.report(), 2, c.after)
					return over
				})
				victim.stop()
				if over {
					if n == 1 {
						t.Error("nothing was changed at all")
					}
					clear(t, e, device)
					return
				}
				next := start(t, device, e)
				settle(next, e, device, 2, c.after)
				next.stop()
				clear(t, e, device)
			}
		})
	}
}

// settled tells whether a device has one running container for each service, no
// other container, and says so.
func settled(t *testing.T, e reconcile.Engine, device string, rep reconcile.Report, revision uint64, want services) bool {
	t.Helper()
	if rep.Revision != revision || len(rep.Deployments) != len(want) {
		return false
	}
	for _, d := range rep.Deployments {
		if d.Phase != command.PhaseRunning {
			return false
		}
	}
	expected := map[string]int{}
	for name, all := range want {
		for _, s := range all {
			expected[name+"/"+s.Name+" running"] = 1
		}
	}
	list, err := e.Containers(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, c := range list {
		got[c.Labels.Deployment+"/"+c.Labels.Service+" "+string(c.State)]++
	}
	return maps.Equal(got, expected)
}

func settle(r *runner, e reconcile.Engine, device string, revision uint64, want services) {
	r.t.Helper()
	r.Set(desired(r.t, revision, want))
	r.await("everything runs, and nothing else", func(rep reconcile.Report) bool {
		return settled(r.t.(*testing.T), e, device, rep, revision, want)
	})
}

// clear removes what a device has.
func clear(t *testing.T, e reconcile.Engine, device string) {
	t.Helper()
	r := start(t, device, e)
	settle(r, e, device, 9, nil)
	r.stop()
}

func TestAnAgentKilledBetweenAnyTwoStepsLeavesNoMess(t *testing.T) {
	m, _ := memory()
	killedAtEachStep(t, m, "a:1", false)
}

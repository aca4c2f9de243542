//go:build linux

package reconcile_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// BenchmarkIdle is a pass over 50 containers of a real Podman with nothing to
// do, which writes nothing: one without a cause, while Podman tells of events, and
// one that lists them, in Podman and in the agent.
func BenchmarkIdle(b *testing.B) {
	_, e := podman(b)
	h := &enginefake.Hooked{Engine: e}
	r := startClean(b, "idle", h, func(o *reconcile.Options) { o.Resync, o.Relist = time.Hour, time.Hour })
	var all []command.Service
	for i := range 50 {
		all = append(all, service(fmt.Sprintf("s%d", i), probe))
	}
	doc := desired(b, 1, services{"one": all})
	r.Set(doc)
	testwait.For(b, 3*time.Minute, "50 containers", func() bool { return r.report().Deployments["one"].Phase == command.PhaseRunning })
	r.stop()
	r.Pass(b, doc) // what stop left to be known
	before := len(h.Calls())
	b.Run("pass", func(b *testing.B) {
		calls := len(h.Calls())
		for range b.N {
			r.Idle(b)
		}
		b.ReportMetric(b.Elapsed().Seconds()*1e3/float64(b.N), "ms/pass")
		b.ReportMetric(0, "ns/op")
		if got := h.Calls()[calls:]; len(got) != 0 {
			b.Fatalf("a pass without a cause asked %v", got)
		}
	})
	b.Run("list", func(b *testing.B) {
		var began time.Time
		var list time.Duration
		h.Before(func(context.Context, enginefake.Call) error { began = time.Now(); return nil })
		h.After(func(context.Context, enginefake.Call) error { list += time.Since(began); return nil })
		for range b.N {
			r.Pass(b, doc)
		}
		perPass := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(b.N) }
		b.ReportMetric(perPass(b.Elapsed()), "ms/pass")
		b.ReportMetric(perPass(list), "ms/pass-in-Podman")
		b.ReportMetric(perPass(b.Elapsed()-list), "ms/pass-in-agent")
		b.ReportMetric(0, "ns/op")
	})
	for _, c := range h.Calls()[before:] {
		if c.Writes() {
			b.Fatalf("a pass with nothing to do wrote: %+v", c)
		}
	}
}

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
// do, which writes nothing: in Podman, which lists them, and in the agent.
func BenchmarkIdle(b *testing.B) {
	_, e := podman(b)
	h := &enginefake.Hooked{Engine: e}
	r := startClean(b, "idle", h, func(o *reconcile.Options) { o.Resync = time.Hour })
	var all []command.Service
	for i := range 50 {
		all = append(all, service(fmt.Sprintf("s%d", i), probe))
	}
	doc := desired(b, 1, services{"one": all})
	r.Set(doc)
	testwait.For(b, 3*time.Minute, "50 containers", func() bool { return r.report().Deployments["one"].Phase == command.PhaseRunning })
	r.stop()
	r.Pass(b, doc) // what stop left to be known
	var began time.Time
	var list time.Duration
	h.Before(func(context.Context, enginefake.Call) error { began = time.Now(); return nil })
	h.After(func(context.Context, enginefake.Call) error { list += time.Since(began); return nil })
	before := len(h.Calls())
	b.ResetTimer()
	for range b.N {
		r.Pass(b, doc)
	}
	perPass := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(b.N) }
	b.ReportMetric(perPass(b.Elapsed()), "ms/pass")
	b.ReportMetric(perPass(list), "ms/pass-in-Podman")
	b.ReportMetric(perPass(b.Elapsed()-list), "ms/pass-in-agent")
	b.ReportMetric(0, "ns/op")
	for _, c := range h.Calls()[before:] {
		if c.Writes() {
			b.Fatalf("a pass with nothing to do wrote: %+v", c)
		}
	}
}

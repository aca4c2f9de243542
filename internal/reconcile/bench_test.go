//go:build linux

package reconcile_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// BenchmarkIdle is a pass over 50 containers of a real Podman with nothing to
// do, which writes nothing; list is what of it is the engine's.
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
	began := time.Now()
	for range b.N {
		if _, err := e.Containers(b.Context(), "idle"); err != nil {
			b.Fatal(err)
		}
	}
	list := time.Since(began)
	before := len(h.Calls())
	r.Pass(b, doc) // what stop left to be known
	b.ResetTimer()
	for range b.N {
		r.Pass(b, doc)
	}
	b.ReportMetric(float64(list.Microseconds())/float64(b.N)/1e3, "ms/list")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1e3, "ms/pass")
	for _, c := range h.Calls()[before:] {
		if c.Writes() {
			b.Fatalf("a pass with nothing to do wrote: %+v", c)
		}
	}
}

package reconcile

import (
	"context"
	"testing"
)

// Idle makes one pass without a cause of a reconciler that does not run, as it
// does while the engine tells of events.
func (r *Reconciler) Idle(t testing.TB) {
	r.events = r.listed.Add(-eventsDelay)
	r.pass(context.Background())
	if r.fault != nil {
		t.Fatal(r.fault)
	}
}

// Pass makes one pass of a reconciler that does not run.
func (r *Reconciler) Pass(t testing.TB, d Desired) {
	r.Set(d)
	r.pass(context.Background())
	if r.fault != nil {
		t.Fatal(r.fault)
	}
}

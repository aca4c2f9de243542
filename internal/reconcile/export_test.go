package reconcile

import (
	"context"
	"testing"
)

// Pass makes one pass of a reconciler that does not run.
func (r *Reconciler) Pass(t testing.TB, d Desired) {
	r.Set(d)
	r.pass(context.Background())
	if r.fault != nil {
		t.Fatal(r.fault)
	}
}

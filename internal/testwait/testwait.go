// Package testwait lets a test wait for a condition with a deadline, which is
// what the tests of this module do instead of sleeping:
//
//	testwait.For(t, 5*time.Second, "agent subscribed", func() bool { return srv.NumSubscriptions() > n })
package testwait

import (
	"testing"
	"time"
)

// Interval is the pause between two looks at a condition.
const Interval = 2 * time.Millisecond

// For blocks until cond holds and fails the test, naming what it waited for,
// when it does not within timeout. cond runs on the calling goroutine.
func For(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		if cond() {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("gave up after %v waiting for: %s", timeout, what)
		case <-tick.C:
		}
	}
}

package reconcile

import (
	"testing"
	"time"
)

func TestTheBackoffOfAServiceGrowsToItsMaximum(t *testing.T) {
	for _, c := range []struct {
		min, max time.Duration
		failures int
		want     time.Duration
	}{
		{time.Second, 5 * time.Minute, 0, time.Second},
		{time.Second, 5 * time.Minute, 3, 8 * time.Second},
		{time.Second, 5 * time.Minute, 8, 256 * time.Second},
		{time.Second, 5 * time.Minute, 9, 5 * time.Minute},
		{time.Minute, time.Hour, 29, time.Hour}, // shifted by so much it would be negative
		{time.Minute, time.Hour, 1000, time.Hour},
	} {
		now := time.Now()
		u := unit{failures: c.failures}
		u.failed(&Options{BackoffMin: c.min, BackoffMax: c.max}, now, "why")
		if got := u.nextTry.Sub(now); got < c.want*9/10-1 || got > c.want*11/10+1 {
			t.Errorf("after %d failures from %v to %v: %v, want %v", c.failures, c.min, c.max, got, c.want)
		}
	}
}

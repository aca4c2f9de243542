package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/harmony-fleet/fleet/internal/brokertime"
)

// Broker time is asked for when it is first needed and then kept fresh in the
// background.
const (
	syncTimeout  = 2 * time.Second
	syncEvery    = 5 * time.Minute  // the clock errs by 60 ms in that time at most
	syncAfterErr = 10 * time.Second // pause after a failure, during which commands go without
)

type clock struct {
	time  *brokertime.Clock
	after atomic.Pointer[anchor]

	mu       sync.Mutex
	syncing  chan struct{} // closed when the sync under way has ended; nil: none is
	cancel   context.CancelCauseFunc
	failedAt time.Time // zero: the last sync was good
	err      error     // of the last sync
}

// anchor is a broker time and when it was read. For a while the time is carried
// on from it with Go's clock: the one that counts suspend is a system call, which
// shows in a fan-out. A suspend meanwhile makes the time early, never late.
type anchor struct {
	broker time.Time
	read   time.Time
}

const anchorFor = time.Second

// now is a lower bound of the broker's time. It waits for the first sync, within
// ctx. ok is false where broker time cannot be had.
func (c *Client) now(ctx context.Context) (now time.Time, ok bool) {
	if a := c.clock.after.Load(); a != nil {
		if since := time.Since(a.read); since < anchorFor {
			return a.broker.Add(since), true
		}
	}
	if now, ok = c.clock.time.Earliest(); ok {
		// Read after the broker's time, so that it errs early.
		c.clock.after.Store(&anchor{broker: now, read: time.Now()})
		if age, _ := c.clock.time.Age(); age > syncEvery {
			c.startSync()
		}
		return now, true
	}
	done := c.startSync()
	if done == nil {
		return time.Time{}, false
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return c.clock.time.Earliest()
}

// startSync starts a sync unless one is under way, and gives what is closed at
// its end; nil where it is too early after a failure.
func (c *Client) startSync() <-chan struct{} {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	if c.clock.syncing != nil {
		return c.clock.syncing
	}
	if c.ctx.Err() != nil || (!c.clock.failedAt.IsZero() && time.Since(c.clock.failedAt) < syncAfterErr) {
		return nil
	}
	done := make(chan struct{})
	ctx, cancel := context.WithCancelCause(c.ctx)
	c.clock.syncing, c.clock.cancel = done, cancel
	c.wg.Go(func() {
		defer close(done)
		limited, release := context.WithTimeout(ctx, syncTimeout)
		defer release()
		_, err := c.clock.time.Sync(limited, c.nc)
		if err != nil && context.Cause(ctx) != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		c.clock.mu.Lock()
		defer c.clock.mu.Unlock()
		c.clock.syncing, c.clock.cancel, c.clock.err, c.clock.failedAt = nil, nil, err, time.Time{}
		if err != nil {
			c.clock.failedAt = time.Now()
			c.log.DebugContext(c.ctx, "broker time cannot be had", "error", err)
		}
	})
	return done
}

// syncSoon syncs a clock that has been synced before again.
func (c *Client) syncSoon() {
	if _, ok := c.clock.time.Age(); ok {
		c.startSync()
	}
}

// syncDenied ends a sync that the broker does not allow, and tells whether there
// was one.
func (c *Client) syncDenied(err error) bool {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	if c.clock.cancel == nil {
		return false
	}
	c.clock.cancel(err)
	return true
}

// clockError is why broker time cannot be had.
func (c *Client) clockError() error {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	return c.clock.err
}

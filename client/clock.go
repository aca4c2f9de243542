package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/directget"
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
	failedAt time.Time     // zero: the last sync was good
	err      error         // of the last sync
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
	c.clock.syncing = done
	c.wg.Go(func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(c.ctx, syncTimeout)
		defer cancel()
		_, err := c.clock.time.SyncBy(ctx, c.request)
		c.clock.mu.Lock()
		defer c.clock.mu.Unlock()
		c.clock.syncing, c.clock.err, c.clock.failedAt = nil, err, time.Time{}
		if err != nil {
			c.clock.failedAt = time.Now()
			c.log.DebugContext(c.ctx, "broker time cannot be had", "error", err)
		}
	})
	return done
}

// request sends a request without payload that is no command. Going through the
// mux, it ends at once where the broker refuses it.
func (c *Client) request(ctx context.Context, subject string) ([]byte, error) {
	events := make(chan event, 1)
	call := &call{subject: subject, to: events}
	if err := c.publish(call, &nats.Msg{Subject: subject}); err != nil {
		return nil, err
	}
	defer c.mux.drop(call)
	select {
	case e := <-events:
		switch {
		case e.err != nil:
			return nil, e.err
		case directget.NoResponders(e.msg.Header, e.msg.Data):
			return nil, natsFault(nats.ErrNoResponders, "the broker does not answer there")
		}
		return e.msg.Data, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// syncSoon syncs a clock that has been synced before again.
func (c *Client) syncSoon() {
	if _, ok := c.clock.time.Age(); ok {
		c.startSync()
	}
}

// clockError is why broker time cannot be had.
func (c *Client) clockError() error {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	return c.clock.err
}

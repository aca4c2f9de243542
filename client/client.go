package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/brokertime"
)

// DefaultTimeout is how long a command waits for its reply.
const DefaultTimeout = 5 * time.Second

// resyncAfter is how old the broker's time may grow before it is asked for
// again: by then the bounds are 60 ms apart (see brokertime.Drift).
const resyncAfter = 5 * time.Minute

// Options configure a client. The zero value is ready to use; nothing may
// change later.
type Options struct {
	// Timeout is how long a command waits for its reply where its context has no
	// earlier deadline, and the deadline that travels with it. Default
	// [DefaultTimeout], at most [command.MaxDeadline].
	Timeout time.Duration
	// OperatorSub goes along with each command, for the device's own log. Devices
	// never trust it.
	OperatorSub string
	// Logger gets one record for each command that no device can have recorded:
	// offline, timed out, denied by the broker. Nil discards.
	Logger *slog.Logger
}

// Client sends commands. It is safe for concurrent use.
type Client struct {
	nc      *nats.Conn
	opts    Options
	log     *slog.Logger
	mux     *mux
	clock   brokertime.Clock
	syncing sync.Mutex // held while the broker is asked for its time
	noTime  bool       // guarded by syncing: the broker will not tell
}

// New makes a client on nc, which stays the caller's to close. It subscribes to
// replies under the connection's inbox prefix and hooks into its error handler,
// which it calls on.
func New(nc *nats.Conn, o Options) (*Client, error) {
	if nc == nil {
		return nil, errors.New("client: no connection")
	}
	if o.Timeout < 0 || o.Timeout > command.MaxDeadline {
		return nil, fmt.Errorf("client: timeout %v: want more than 0 and at most %v", o.Timeout, command.MaxDeadline)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	c := &Client{nc: nc, opts: o, log: o.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.mux, err = newMux(nc); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends what is under way with [ErrClosed] and gives the subscription back.
// The connection stays open. It may be called more than once.
func (c *Client) Close() error {
	c.mux.close()
	return nil
}

// deadline is timeout from now by the broker's clock, erring early; zero where
// the broker's time cannot be had.
func (c *Client) deadline(ctx context.Context, timeout time.Duration) time.Time {
	if age, ok := c.clock.Age(); !ok || age > resyncAfter {
		c.sync(ctx)
	}
	now, ok := c.clock.Earliest()
	if !ok {
		return time.Time{}
	}
	return now.Add(timeout)
}

func (c *Client) sync(ctx context.Context) {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	if age, ok := c.clock.Age(); c.noTime || (ok && age < resyncAfter) {
		return // another call did it, or it cannot be done
	}
	// Bounded below the command's own timeout, so that a broker that does not
	// answer leaves time for the command.
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout/2)
	defer cancel()
	if _, err := c.clock.Sync(ctx, c.nc); err != nil {
		c.log.Warn("broker time is not known; ping goes without a deadline", "error", err)
		if _, synced := c.clock.Age(); !synced && errors.Is(err, nats.ErrPermissionViolation) {
			c.noTime = true
		}
	}
}

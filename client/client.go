package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/brokertime"
)

// Defaults of [Options] and [FanOut].
const (
	DefaultTimeout     = 5 * time.Second
	DefaultWindow      = 4096
	DefaultConcurrency = 64 // window of programs
)

// MaxWindow is the largest window, in commands: beyond it the memory that
// replies may take is no longer small.
const MaxWindow = 1 << 16

// MaxRate is the highest rate of a fan-out, in devices a second.
const MaxRate = 1_000_000

// Options are settings of a client. The zero value is good; nothing in it may
// change after [New].
type Options struct {
	// Timeout is how long a command waits for its reply. The context of a call may
	// end it earlier, never later. Default 5 s, at most 24 h.
	Timeout time.Duration
	// OperatorSub says for whom a tool acts. Devices do not trust it. Empty: none;
	// at most 512 bytes.
	OperatorSub string
	// Logger gets one record for each command that ended in a way that no device
	// can know and record: offline, timeout, refused by the broker, connection
	// lost. Level info, message "command", with verb, device_id, request_id,
	// outcome and reason. nil discards.
	Logger *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.OperatorSub) > 512 || strings.ContainsFunc(o.OperatorSub, unicode.IsControl) {
		return errors.New("OperatorSub: want at most 512 bytes without control characters")
	}
	return checkTimeout(o.Timeout)
}

func checkTimeout(d time.Duration) error {
	if d <= 0 || d > command.MaxDeadline {
		return fmt.Errorf("timeout %v: want more than 0 and at most %v", d, command.MaxDeadline)
	}
	return nil
}

// Client sends commands. It is safe for concurrent use, and several clients may
// share a connection.
type Client struct {
	nc   *nats.Conn
	opts Options
	log  *slog.Logger
	mux  *mux
	sub  *nats.Subscription

	clock   clock
	streams streams

	// ctx ends with Close; every goroutine ends with it and is waited for in wg.
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce sync.Once
}

// New makes a client on nc, which stays the caller's to close, after the client.
// nc may still be connecting. While the client lives, permission violations that
// concern its own requests do not reach the error handler of nc; all other
// errors do.
func New(nc *nats.Conn, opts Options) (*Client, error) {
	if nc == nil {
		return nil, errors.New("new client: the connection is nil")
	}
	if nc.IsClosed() || nc.IsDraining() {
		return nil, fmt.Errorf("new client: the connection is %v; connect again", nc.Status())
	}
	if err := opts.setDefaults(); err != nil {
		return nil, fmt.Errorf("new client: %w", err)
	}
	// A generator of its own: names from the shared one can be guessed from each
	// other, and whoever knew this inbox could have a device's answer delivered
	// into it, since the broker does not check reply subjects.
	inbox := nats.InboxPrefix
	if p := nc.Opts.InboxPrefix; p != "" {
		inbox = p + "."
	}
	c := &Client{nc: nc, opts: opts, log: opts.Logger, mux: newMux(inbox + nuid.New().Next() + ".")}
	c.clock.time = &brokertime.Clock{}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	hook(c)
	status := nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED, nats.DRAINING_SUBS, nats.DRAINING_PUBS)
	var err error
	if c.sub, err = nc.Subscribe(c.mux.prefix+"*", c.mux.onMsg); err != nil {
		nc.RemoveStatusListener(status)
		unhook(c)
		c.cancel()
		return nil, fmt.Errorf("new client: subscribe to replies: %w", err)
	}
	c.wg.Go(func() {
		defer nc.RemoveStatusListener(status)
		c.watch(status)
	})
	return c, nil
}

// Close ends every command in flight with [ErrClosed] and waits for what the
// client started. The connection stays open. It may be called more than once;
// the error is always nil.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.mux.shut(fault(command.OutcomeFailed, ErrClosed, "not sent, or given up"))
		c.streams.close(fault(command.OutcomeFailed, ErrClosed, "given up"))
		_ = c.sub.Unsubscribe() // fails where the connection is closed, which is as good
		unhook(c)
		c.clock.mu.Lock() // no sync starts after this
		c.cancel()
		c.clock.mu.Unlock()
	})
	c.wg.Wait()
	return nil
}

// watch ends the commands in flight when the connection can no longer bring
// their replies.
func (c *Client) watch(status <-chan nats.Status) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case s, ok := <-status:
			if !ok {
				return
			}
			if s == nats.CONNECTED {
				// Subscriptions were made again, with the permissions of now; the server
				// may be another one, with another clock.
				c.mux.admit()
				c.syncSoon()
				c.streams.each((*stream).resume)
				continue
			}
			err := lost(s, c.lastError())
			c.mux.failAll(err)
			if s == nats.CLOSED || s == nats.DRAINING_SUBS || s == nats.DRAINING_PUBS {
				c.streams.each(func(s *stream) { s.fail(err) })
			} // else they outlive it
		}
	}
}

// lost is the fault of commands whose connection is in state s.
func lost(s nats.Status, cause error) *command.Error {
	switch s {
	case nats.CLOSED:
		if refused(cause) {
			return fault(command.OutcomeDenied, fmt.Errorf("%w: %w", ErrNATS, cause),
				"the broker no longer accepts the credential of this connection: it expired or was revoked; sign in again with a fresh one")
		}
		return natsFault(cause, "the connection to the broker is closed; connect again")
	case nats.DRAINING_SUBS, nats.DRAINING_PUBS:
		return natsFault(nil, "the connection to the broker is being drained")
	}
	return natsFault(cause, "the connection to the broker was lost; whether the command ran is not known; it reconnects by itself")
}

// ready refuses to send where no reply could come back. Without it the library
// would keep the request and send it once it has reconnected: a command that
// runs after its caller has given up.
func (c *Client) ready() *command.Error {
	switch s := c.nc.Status(); s {
	case nats.CONNECTED:
		return nil
	case nats.CLOSED, nats.DRAINING_SUBS, nats.DRAINING_PUBS:
		return lost(s, c.lastError())
	default:
		return natsFault(c.lastError(), "not connected to the broker; it reconnects by itself, try again")
	}
}

// lastError is why the connection is not up. The library keeps permission
// violations there too, which are not the reason.
func (c *Client) lastError() error {
	if err := c.nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) {
		return err
	}
	return nil
}

// note logs a command that ended in a way that no device knows.
func (c *Client) note(ctx context.Context, e *command.Error) {
	if e.Kind != "" || e.Outcome == command.OutcomeRejected || !c.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	message := e.Message
	if message == "" && e.Err != nil {
		message = e.Err.Error()
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "command",
		slog.String("verb", string(e.Verb)), slog.String("device_id", e.DeviceID), slog.String("request_id", e.RequestID),
		slog.String("outcome", string(e.Outcome)), slog.String("reason", message))
}

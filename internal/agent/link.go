package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/directget"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// link is one connection with its subscriptions. An agent has one, and during a
// renewal two.
type link struct {
	agent    *Agent
	nc       *nats.Conn
	commands *nats.Subscription
	notices  []*nats.Subscription

	handling context.Context // of the commands that came in here
	cancel   context.CancelFunc
	inflight sync.WaitGroup
	drained  chan struct{} // closed when no more commands come in

	timed bool                      // the broker told its time, and how long the connection lives
	since atomic.Pointer[time.Time] // when it took up the commands
	ends  time.Time                 // when the broker ends it; zero: never. Not changed once another is current.
}

// maxQueuedBytes bounds the commands that wait for the agent, in bytes.
const maxQueuedBytes = 64 << 20

// dial connects, takes up the commands, and learns the broker's time.
func (a *Agent) dial(ctx context.Context) (*link, brokertime.Identity, error) {
	l := &link{agent: a, drained: make(chan struct{})}
	l.handling, l.cancel = context.WithCancel(context.Background())
	cfg := a.opts.NATS
	cfg.Name = command.ConnectionName(a.opts.DeviceID)
	cfg.InboxPrefix = command.DeviceInboxPrefix(a.opts.DeviceID)
	cfg.Logger, cfg.Retry = a.log, false
	cfg.Options = append(slices.Clone(cfg.Options),
		// What could not be sent before a connection broke is stale after it: replies
		// have lost the right to be sent, reports are made anew.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(l.disconnected), nats.ReconnectHandler(l.reconnected),
		nats.ClosedHandler(l.closed), nats.ErrorHandler(l.asyncError),
	)
	nc, err := natsconn.Connect(ctx, cfg)
	if err != nil {
		l.cancel()
		return nil, brokertime.Identity{}, err
	}
	l.nc = nc
	identity, err := l.open(ctx)
	if err != nil {
		l.close()
		return nil, brokertime.Identity{}, err
	}
	return l, identity, nil
}

func (l *link) open(ctx context.Context) (brokertime.Identity, error) {
	a := l.agent
	// Apart from each other: any device can have messages delivered to both, as many
	// as it likes, and those on one must not crowd out those on the other. Of hints
	// one stands for all that wait, so none is lost.
	hints, err := l.nc.Subscribe(command.DesiredStateSubject(a.opts.DeviceID), func(*nats.Msg) { a.watch.announced() })
	if err != nil {
		return brokertime.Identity{}, fmt.Errorf("subscribe to %s: %w", command.DesiredStateSubject(a.opts.DeviceID), err)
	}
	seen, err := l.nc.ChanSubscribe(command.SeenSubject(a.opts.DeviceID), a.notices)
	if err != nil {
		return brokertime.Identity{}, fmt.Errorf("subscribe to %s: %w", command.SeenSubject(a.opts.DeviceID), err)
	}
	l.notices = []*nats.Subscription{hints, seen}
	subject := command.Subscription(a.opts.DeviceID)
	// No queue group: a connection that is dead and not noticed yet would take half
	// of the group's commands.
	l.commands, err = l.nc.Subscribe(subject, func(msg *nats.Msg) { a.server.handle(l, msg) })
	if err != nil {
		return brokertime.Identity{}, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	l.commands.SetClosedHandler(func(string) { close(l.drained) })
	if err := l.commands.SetPendingLimits(a.opts.MaxQueued, maxQueuedBytes); err != nil {
		return brokertime.Identity{}, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	flush, cancel := context.WithTimeout(ctx, natsconn.ConnectTimeout)
	defer cancel()
	if err := l.nc.FlushWithContext(flush); err != nil {
		return brokertime.Identity{}, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	// The server answers in order, so a refusal has arrived by now. The right
	// credential may do all of this; an agent that looked well and was deaf would be
	// worse than one that says what is wrong.
	if err := l.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return brokertime.Identity{}, &command.Error{Outcome: command.OutcomeDenied, DeviceID: a.opts.DeviceID,
			Message: "the broker does not let this credential take commands for the device id; sign in as the device, or correct device_id", Err: err}
	}
	// Without the time the agent serves what it can, and the loop asks again.
	identity, timeErr := a.clock.Sync(ctx, l.nc)
	if timeErr != nil {
		if ctx.Err() != nil {
			return identity, timeErr
		}
		a.log.Warn("the broker did not tell its time; commands that change something are refused until it does", "error", timeErr)
	}
	l.timed = timeErr == nil
	l.took()
	return identity, nil
}

func (l *link) took() {
	now := time.Now()
	l.since.Store(&now)
}

func (l *link) subscribedAt() time.Time { return *l.since.Load() }

// life counts the reconnects: what was sent in one life may be lost in the next.
func (l *link) life() uint64 { return l.nc.Stats().Reconnects }

// readTimeout bounds one question to the broker for a stored message.
const readTimeout = 5 * time.Second

// lastOn reads the last message on subject from stream, within readTimeout.
func (l *link) lastOn(ctx context.Context, stream, subject string) (m directget.Message, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return directget.Last(ctx, l.nc, stream, subject)
}

// waiting is how many commands have not been looked at.
func (l *link) waiting() int {
	n, _, err := l.commands.Pending()
	if err != nil {
		return 0
	}
	return n
}

func (l *link) droppedCommands() uint64 {
	n, err := l.commands.Dropped()
	if err != nil || n < 0 {
		return 0
	}
	return uint64(n)
}

func (l *link) disconnected(_ *nats.Conn, err error) {
	if err != nil {
		l.agent.log.Warn("connection to the broker lost; reconnecting", "error", err)
	}
}

func (l *link) reconnected(nc *nats.Conn) {
	if l.since.Load() == nil {
		return // lost and found while it was being opened; what fails then is tried again
	}
	l.took()
	l.agent.log.Info("connected to the broker again", "server", nc.ConnectedUrlRedacted())
	l.agent.send(event{kind: linkReconnected, link: l})
}

func (l *link) closed(*nats.Conn) { l.agent.send(event{kind: linkClosed, link: l}) }

func (l *link) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	switch {
	case natsconn.Refused(err): // that is said by natsconn
	case errors.Is(err, nats.ErrSlowConsumer) && sub != nil && sub.Subject != command.Subscription(l.agent.opts.DeviceID):
		l.agent.log.Debug("more notices than are looked at; some are dropped", "subject", sub.Subject)
	case errors.Is(err, nats.ErrSlowConsumer):
		l.agent.log.Error("commands come in faster than they are served; some are dropped", "limit", l.agent.opts.MaxQueued)
	default:
		l.agent.log.Warn("broker", "error", err)
	}
}

// drain ends the intake and waits for what was accepted: at most for bound, and
// once ctx has ended at most for afterStop. It tells whether all was answered.
func (l *link) drain(ctx context.Context, bound, afterStop time.Duration) bool {
	for _, sub := range l.notices {
		_ = sub.Unsubscribe() // fails only where the connection is gone
	}
	if err := l.commands.Drain(); err != nil || !l.nc.IsConnected() {
		// Nothing more comes in, and nothing can be answered.
		_ = l.commands.Unsubscribe()
	}
	done := make(chan struct{})
	go func() { // ends when the handlers do: they are told to below
		defer close(done)
		<-l.drained
		l.inflight.Wait()
	}()
	answered := false
	limit := time.NewTimer(bound)
	defer limit.Stop()
	for stop, over := ctx.Done(), false; !over; {
		select {
		case <-done:
			answered, over = true, true
		case <-limit.C:
			over = true
		case <-stop:
			stop = nil
			limit.Reset(min(bound, afterStop))
		}
	}
	l.cancel()
	if !answered {
		_ = l.commands.Unsubscribe()
		select {
		case <-done:
		case <-time.After(handlerGrace):
			l.agent.log.Error("a command handler does not stop; it is left behind")
		}
	}
	return answered
}

// handlerGrace is how long a handler has to return after its context has ended.
const handlerGrace = 2 * time.Second

// close ends the connection; replies that wait in its buffer still go out.
func (l *link) close() {
	l.cancel()
	if l.nc.IsConnected() {
		_ = l.nc.FlushTimeout(time.Second)
	}
	l.nc.Close()
}

package client

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// mux gives each request a reply subject of its own below one wildcard
// subscription. A request ends exactly once: by its first reply, by the broker's
// refusal, or by being given up.
type mux struct {
	nc     *nats.Conn
	sub    *nats.Subscription
	prefix string // of reply subjects, with the final dot

	status   chan nats.Status
	watching sync.WaitGroup

	mu      sync.Mutex
	next    uint64
	pending map[uint64]*request
	closed  error // why nothing more is taken; nil: open
}

// request is one message that waits for its reply.
type request struct {
	id      uint64
	subject string
	// done is called once, and must not block: it runs on the subscription's
	// goroutine. Exactly one of msg and err is set.
	done func(msg *nats.Msg, err error)
	// part, where set, is given each reply before done and tells whether it was the
	// last one; see [Client.batch].
	part func(msg *nats.Msg) (last bool)
}

func newMux(nc *nats.Conn) (*mux, error) {
	m := &mux{nc: nc, prefix: nc.NewInbox() + ".", pending: map[uint64]*request{}}
	sub, err := nc.Subscribe(m.prefix+"*", m.receive)
	if err != nil {
		return nil, fmt.Errorf("client: subscribe to replies: %w", err)
	}
	m.sub = sub
	// A fan-out may have many thousand replies on their way.
	if err := sub.SetPendingLimits(1<<20, 1<<30); err != nil {
		return nil, errors.Join(fmt.Errorf("client: subscribe to replies: %w", err), sub.Unsubscribe())
	}
	hookErrors(nc, m)
	m.status = nc.StatusChanged(nats.CLOSED)
	m.watching.Go(func() {
		for s := range m.status {
			if s == nats.CLOSED {
				m.fail(natsFault(nats.ErrConnectionClosed))
				return
			}
		}
	})
	if nc.IsClosed() {
		m.fail(natsFault(nats.ErrConnectionClosed))
	}
	return m, nil
}

// send publishes msg with a reply subject of its own. done is called with what
// ends the request, unless give up came first. An error means that it was not
// sent and done will not be called.
func (m *mux) send(msg *nats.Msg, done func(*nats.Msg, error)) (*request, error) {
	return m.sendParts(msg, nil, done)
}

// sendParts is send for a request that several messages answer.
func (m *mux) sendParts(msg *nats.Msg, part func(*nats.Msg) bool, done func(*nats.Msg, error)) (*request, error) {
	m.mu.Lock()
	if m.closed != nil {
		err := m.closed
		m.mu.Unlock()
		return nil, err
	}
	m.next++
	r := &request{id: m.next, subject: msg.Subject, part: part, done: done}
	m.pending[r.id] = r
	m.mu.Unlock()
	msg.Reply = m.prefix + strconv.FormatUint(r.id, 36)
	if err := m.nc.PublishMsg(msg); err != nil {
		if m.giveUp(r) {
			return nil, natsFault(err)
		}
	}
	return r, nil
}

// giveUp takes r off; false means that it has ended already and done was, or is
// being, called.
func (m *mux) giveUp(r *request) bool { return m.take(r.id) != nil }

func (m *mux) take(id uint64) *request {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.pending[id]
	delete(m.pending, id)
	return r
}

// receive ends the request that msg answers; a late or foreign one is dropped.
func (m *mux) receive(msg *nats.Msg) {
	token, ok := strings.CutPrefix(msg.Subject, m.prefix)
	if !ok {
		return
	}
	id, err := strconv.ParseUint(token, 36, 64)
	if err != nil {
		return
	}
	if r := m.peek(id); r == nil || (r.part != nil && !r.part(msg)) {
		return
	}
	if r := m.take(id); r != nil {
		r.done(msg, nil)
	}
}

func (m *mux) peek(id uint64) *request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pending[id]
}

// refuse ends every request on subject: the broker said that this connection may
// not publish there.
func (m *mux) refuse(subject string, err error) {
	var refused []*request
	m.mu.Lock()
	for id, r := range m.pending {
		if r.subject == subject {
			refused = append(refused, r)
			delete(m.pending, id)
		}
	}
	m.mu.Unlock()
	for _, r := range refused {
		r.done(nil, &command.Error{
			Outcome: command.OutcomeDenied,
			Message: "the broker does not let this identity publish to " + subject + "; it lacks the role",
			Err:     err,
		})
	}
}

// fail ends everything under way and takes nothing more.
func (m *mux) fail(err error) {
	m.mu.Lock()
	if m.closed == nil {
		m.closed = err
	}
	pending := m.pending
	m.pending = map[uint64]*request{}
	m.mu.Unlock()
	for _, r := range pending {
		r.done(nil, err)
	}
}

func (m *mux) close() {
	unhookErrors(m.nc, m)
	m.fail(&command.Error{Outcome: command.OutcomeFailed, Err: ErrClosed})
	_ = m.sub.Unsubscribe() // fails only where the connection is closed
	m.nc.RemoveStatusListener(m.status)
	m.watching.Wait()
}

// inFlight counts requests that wait.
func (m *mux) inFlight() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pending)
}

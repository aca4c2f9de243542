package client

import (
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// mux gives replies to the requests that they answer. One wildcard subscription
// serves all of them: each request has a token, which is the last one of its
// reply subject. A reply to a request that is no longer waited for is dropped.
type mux struct {
	prefix string // "_INBOX.<uid>.<secret>."

	mu        sync.Mutex
	last      uint64           // token given out last
	calls     map[uint64]*call // in flight, by token
	bySubject map[string]*call // the same, by subject: the head of a list
	down      *command.Error   // new calls end with it; nil: replies can come
	shutdown  bool             // down stays
}

// call is one request in flight.
type call struct {
	subject string
	// to gets one event, or many where many is set. It must have room: an event
	// without room is lost.
	to   chan<- event
	many bool

	token      uint64
	next, prev *call // others on the same subject

	// For whoever waits; the mux does not look at these.
	device    string
	requestID string
	sent      time.Time
	deadline  time.Time
	attempt   int
	done      bool
}

// event is what became of a call: a message, or a fault.
type event struct {
	call *call
	msg  *nats.Msg
	err  *command.Error
	at   time.Time // when the message came
}

func newMux(prefix string) *mux {
	return &mux{prefix: prefix, calls: map[uint64]*call{}, bySubject: map[string]*call{}}
}

// open takes a call in and gives its reply subject.
func (m *mux) open(c *call) (reply string, err *command.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return "", m.down
	}
	m.last++
	c.token = m.last
	m.calls[c.token] = c
	if head := m.bySubject[c.subject]; head != nil {
		c.next, head.prev = head, c
	}
	m.bySubject[c.subject] = c
	return m.prefix + strconv.FormatUint(c.token, 36), nil
}

// remove takes a call out; m.mu is held.
func (m *mux) removeLocked(c *call) {
	delete(m.calls, c.token)
	if c.prev != nil {
		c.prev.next = c.next
	} else if c.next != nil {
		m.bySubject[c.subject] = c.next
	} else {
		delete(m.bySubject, c.subject)
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil
}

// drop gives a call up. false: its event is already on the way.
func (m *mux) drop(c *call) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls[c.token] != c {
		return false
	}
	m.removeLocked(c)
	return true
}

// onMsg is the handler of the subscription.
func (m *mux) onMsg(msg *nats.Msg) {
	at := time.Now()
	if len(msg.Subject) <= len(m.prefix) {
		return
	}
	token, err := strconv.ParseUint(msg.Subject[len(m.prefix):], 36, 64)
	if err != nil {
		return
	}
	m.mu.Lock()
	c := m.calls[token]
	if c != nil && !c.many {
		m.removeLocked(c)
	}
	m.mu.Unlock()
	if c != nil {
		c.give(event{call: c, msg: msg, at: at})
	}
}

func (c *call) give(e event) {
	select {
	case c.to <- e:
	default:
	}
}

// failAll ends every call.
func (m *mux) failAll(err *command.Error) {
	m.mu.Lock()
	calls := m.calls
	m.calls, m.bySubject = map[uint64]*call{}, map[string]*call{}
	m.mu.Unlock()
	for _, c := range calls {
		c.give(event{call: c, err: err})
	}
}

// failSubject ends the calls on subject and tells whether there were any.
func (m *mux) failSubject(subject string, err *command.Error) bool {
	m.mu.Lock()
	var calls []*call
	for c := m.bySubject[subject]; c != nil; c = m.bySubject[subject] {
		m.removeLocked(c)
		calls = append(calls, c)
	}
	m.mu.Unlock()
	for _, c := range calls {
		c.give(event{call: c, err: err})
	}
	return len(calls) > 0
}

// refuse ends every call, and those to come until admit, with err.
func (m *mux) refuse(err *command.Error) {
	m.mu.Lock()
	if m.down == nil {
		m.down = err
	}
	m.mu.Unlock()
	m.failAll(err)
}

// shut is refuse for good.
func (m *mux) shut(err *command.Error) {
	m.mu.Lock()
	m.down, m.shutdown = err, true
	m.mu.Unlock()
	m.failAll(err)
}

// admit takes calls again.
func (m *mux) admit() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.shutdown {
		m.down = nil
	}
}

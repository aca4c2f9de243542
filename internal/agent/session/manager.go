package session

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// Options configure a manager. Device and Conn are needed.
type Options struct {
	// Device is the id of the device.
	Device string
	// Conn is the connection to publish on now; nil: there is none.
	Conn func() *nats.Conn
	// MaxSessions and MaxPerCaller are how many sessions there may be at once;
	// beyond it the answer is busy. Default 128 and 32.
	MaxSessions, MaxPerCaller int
	// MaxWindow is the most credit that a caller gets, in bytes: it bounds the memory
	// of a session. Default 4 MiB.
	MaxWindow int64
	// MaxMemory is what the windows of all sessions may add up to, in bytes; those of
	// one caller to half of it. Beyond it the answer is busy. Default: MaxPerCaller
	// windows of logs for a caller, and at least half of MaxSessions in all (64 MiB
	// with their defaults).
	MaxMemory int64
	// Lease is how long a caller may say nothing; default command.SessionLease.
	Lease time.Duration
	// Log gets a source that panicked; nil discards.
	Log *slog.Logger
	// Keepalive is how long the device itself says nothing; default
	// command.SessionKeepalive.
	Keepalive time.Duration
}

func (o *Options) setDefaults() {
	def(&o.MaxSessions, 128)
	def(&o.MaxPerCaller, 32)
	def(&o.MaxWindow, 4<<20)
	def(&o.MaxMemory, command.DefaultLogsWindow*int64(max(2*o.MaxPerCaller, o.MaxSessions/2)))
	def(&o.Lease, command.SessionLease)
	def(&o.Keepalive, command.SessionKeepalive)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Manager holds the sessions of a device.
type Manager struct {
	o        Options
	stopping atomic.Bool
	wg       sync.WaitGroup

	mu       sync.Mutex
	sessions map[key]*Session
	callers  map[string]share // by uid
	windows  int64            // of all sessions, in bytes
}

// share is what one caller has open.
type share struct {
	sessions int
	windows  int64 // bytes
}

// key names a session: an id is the caller's own, so that nobody can take
// somebody else's away.
type key struct{ uid, id string }

// New makes a manager. Close ends it.
func New(o Options) *Manager {
	o.setDefaults()
	return &Manager{o: o, sessions: map[key]*Session{}, callers: map[string]share{}}
}

// Open is what a request asks for, and how long it may take.
type Open struct {
	UID       string // of the verified caller
	RequestID string
	Session   command.Session
	// Timeout is the caller's own bound: what it ends has an exit code and no error.
	Timeout time.Duration
	// MaxDuration and IdleTimeout end the session; 0: they do not.
	MaxDuration, IdleTimeout time.Duration
}

// Open takes a session in. What follows is Serve or Abort. The error is an
// [*command.Error].
func (m *Manager) Open(o Open) (*Session, error) {
	if err := command.CheckSessionID(o.Session.ID); err != nil {
		return nil, err
	}
	if o.Session.Credit <= 0 {
		return nil, command.NewError(command.KindBadRequest, "session: the credit is %d bytes; want more than 0, for example %d", o.Session.Credit, command.DefaultLogsWindow)
	}
	k := key{o.UID, o.Session.ID}
	now := time.Now()
	s := &Session{
		m: m, key: k, open: o, began: now, heard: now, busy: now, sentAt: now,
		subject: command.SessionSubject(m.o.Device, o.UID, o.Session.ID),
		window:  min(max(o.Session.Credit, minWindow), m.o.MaxWindow), controls: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	s.changed.L = &s.mu
	s.out.limit = min(o.Session.Credit, s.window)
	m.mu.Lock()
	defer m.mu.Unlock()
	mine := m.callers[o.UID]
	switch {
	case m.stopping.Load():
		return nil, command.NewError(command.KindBusy, "the agent stops; try again when it is back")
	case m.sessions[k] != nil:
		return nil, command.NewError(command.KindBadRequest, "session: the id is in use; make a new one for each session")
	case len(m.sessions) >= m.o.MaxSessions:
		return nil, command.NewError(command.KindBusy, "%d sessions are open on this device; try again when one has ended", len(m.sessions))
	case mine.sessions >= m.o.MaxPerCaller:
		return nil, command.NewError(command.KindBusy, "this caller has %d sessions open on this device; end one first", mine.sessions)
	case m.windows+s.window > m.o.MaxMemory || mine.windows+s.window > m.o.MaxMemory/2:
		return nil, command.NewError(command.KindBusy, "the windows of the sessions open on this device add up to %d bytes, %d of them this caller's; end one, or ask for less credit", m.windows, mine.windows)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	m.sessions[k] = s
	m.countLocked(s, 1)
	return s, nil
}

// minWindow is what a session may grow to, however small its first credit, in
// bytes.
const minWindow = command.DefaultExecWindow

// countLocked adds a session to those that are open (1), or takes it out (-1).
func (m *Manager) countLocked(s *Session, n int) {
	c := m.callers[s.key.uid]
	c.sessions += n
	c.windows += int64(n) * s.window
	m.windows += int64(n) * s.window
	if m.callers[s.key.uid] = c; c == (share{}) {
		delete(m.callers, s.key.uid)
	}
}

func (m *Manager) remove(s *Session) {
	s.cancel(nil)
	m.mu.Lock()
	if m.sessions[s.key] == s {
		delete(m.sessions, s.key)
		m.countLocked(s, -1)
	}
	m.mu.Unlock()
	s.mu.Lock()
	s.out.drop()
	s.mu.Unlock()
}

// Why a control message was dropped; for the log.
var (
	ErrUnknown = errors.New("no such session")
	ErrForeign = errors.New("the session is another caller's")
)

// Control takes a message of session control, from the caller that the broker
// verified. It does not wait. The error is for the log: there is no reply.
func (m *Manager) Control(uid string, target command.Target, header map[string][]string, data []byte) error {
	if uid != target.UID {
		return ErrForeign
	}
	m.mu.Lock()
	s := m.sessions[key{uid, target.Session}]
	m.mu.Unlock()
	if s == nil {
		return ErrUnknown
	}
	s.control(target.Op, header, data)
	return nil
}

// Connected has every session send again what may have been lost.
func (m *Manager) Connected() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		s.poke()
	}
}

// Len is how many sessions there are.
func (m *Manager) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions)
}

// Close ends every session and waits for their sources, and that their ends have
// been sent. It may be called more than once.
func (m *Manager) Close() {
	m.mu.Lock()
	m.stopping.Store(true)
	for _, s := range m.sessions {
		s.cancel(ErrStopping)
		s.poke()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

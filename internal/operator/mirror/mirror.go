package mirror

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/brokertime"
)

// Options of a mirror. The zero value has the defaults.
type Options struct {
	// HeartbeatTimeout is how long after its last heartbeat a device is online;
	// default 45 s, three heartbeats.
	HeartbeatTimeout time.Duration
	// DisconnectGrace is how long after the end of its connection a device is online
	// unless a heartbeat comes; default 20 s, one heartbeat and some.
	DisconnectGrace time.Duration
	// AwayAfter is how long the broker has to be away for devices to show that;
	// default 45 s.
	AwayAfter time.Duration

	// Prepare, if set, is called after each connect and before anything is read; it is
	// tried until it succeeds. It is where streams are provisioned.
	Prepare func(ctx context.Context, nc *nats.Conn) error

	// Logger gets what happens; nil discards.
	Logger *slog.Logger
}

// Mirror is the state of every device. It is safe for concurrent use.
type Mirror struct {
	nc    *nats.Conn
	opts  Options
	log   *slog.Logger
	clock brokertime.Clock
	feeds []*feed

	synced chan struct{}

	written, conflicts atomic.Uint64
	unreadable         [partCount]atomic.Uint64

	mu      sync.RWMutex
	devices map[string]*entry
	changes map[*Changes]struct{}
	scores  sharedScores
	timers  timerHeap
	wake    chan struct{} // holds a token when the first of timers may have changed

	current   bool          // connected, and everything that is stored was read
	fault     error         // why it is not current
	away      bool          // not current for AwayAfter
	awayTimer *time.Timer   // sets away
	graceEnd  time.Duration // on the monotonic clock: until then no device is lost
}

// entry is a device with what only the mirror needs.
type entry struct {
	dev Device
	// epoch is, for each part, the epoch of the feed in which it was last seen.
	epoch [partCount]uint64
	// gone is when, by the broker, the device's connection ended; zero: it did not, or a
	// heartbeat came since.
	gone time.Time
	// due is when the device is looked at again; see online.go. 0: not scheduled.
	due time.Duration
	// complained is, for each part, the sequence of the last message that could not be
	// read and was logged.
	complained [partCount]bool
}

// New makes a mirror of what nc can read, which must be in the DATA account with the
// role fleet-controller. It does nothing before Start.
func New(nc *nats.Conn, o Options) *Mirror {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.HeartbeatTimeout, 3*command.HeartbeatInterval)
	set(&o.DisconnectGrace, command.HeartbeatInterval+5*time.Second)
	set(&o.AwayAfter, 3*command.HeartbeatInterval)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mirror{
		nc: nc, opts: o, log: o.Logger, synced: make(chan struct{}), wake: make(chan struct{}, 1),
		devices: map[string]*entry{}, changes: map[*Changes]struct{}{}, fault: errors.New("not connected to the broker yet"),
	}
	m.feeds = m.newFeeds()
	return m
}

// NeedLeaderElection says that one operator mirrors, the one that acts: another that
// waits to take over needs no copy.
func (m *Mirror) NeedLeaderElection() bool { return true }

// Synced is closed once everything that the broker had was read for the first time.
// Nothing is to be concluded from the absence of a device before.
func (m *Mirror) Synced() <-chan struct{} { return m.synced }

// Device gives what is known of a device; ok is false where nothing is.
func (m *Mirror) Device(id string) (d Device, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e, ok := m.devices[id]
	if !ok {
		return Device{}, false
	}
	return m.view(e), true
}

// view is the device of e as it is shown.
func (m *Mirror) view(e *entry) Device {
	d := e.dev
	if m.away {
		d.OnlineReason = reasonAway
	}
	return d
}

// All gives every device of which anything is known, in no order, as it was when All
// was called or later.
func (m *Mirror) All() iter.Seq[Device] {
	return func(yield func(Device) bool) {
		m.mu.RLock()
		ids := make([]string, 0, len(m.devices))
		for id := range m.devices {
			ids = append(ids, id)
		}
		m.mu.RUnlock()
		for _, id := range ids {
			if d, ok := m.Device(id); ok && !yield(d) {
				return
			}
		}
	}
}

// Len is how many devices All gives.
func (m *Mirror) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.devices)
}

// NotCurrent says why the mirror may lack what the broker has: it is away, or its
// streams were not read yet. nil: it lacks nothing.
func (m *Mirror) NotCurrent() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.current {
		return nil
	}
	return m.fault
}

// Away tells whether the broker has been away for so long that devices show it.
func (m *Mirror) Away() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.away
}

// update changes what is known of a device; change tells whether anybody needs to
// hear of it.
func (m *Mirror) update(id string, change func(*entry, *Device) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.devices[id]
	if e == nil {
		e = &entry{dev: Device{ID: id, OnlineReason: reasonNeverSeen}}
		m.devices[id] = e
	}
	if change(e, &e.dev) {
		m.notify(id)
	}
}

func (m *Mirror) notify(id string) {
	for c := range m.changes {
		c.add(id)
	}
}

func (m *Mirror) notifyAll() {
	for id := range m.devices {
		m.notify(id)
	}
}

// setCurrent says that the mirror has all that the broker has, if every feed says so.
func (m *Mirror) setCurrent() {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Looked at under the lock: a feed that breaks off says so of itself first, and
	// then of the mirror, with the lock.
	if m.current || slices.ContainsFunc(m.feeds, func(f *feed) bool { return !f.caughtUp.Load() }) {
		return
	}
	m.awayTimer.Stop()
	if m.away {
		m.away = false
		m.notifyAll()
	}
	m.current, m.fault = true, nil
	select {
	case <-m.synced:
		// Devices could not be heard meanwhile, or could not connect: each has the time to
		// be heard again. It is not so at the start, when what is stored is all there is.
		m.graceEnd = monotonic() + m.opts.HeartbeatTimeout
	default:
		close(m.synced)
	}
	m.wakeTimers()
}

// setBehind says that it may not have, and why.
func (m *Mirror) setBehind(why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = why
	if m.current || m.awayTimer == nil {
		m.current = false
		m.awayTimer = time.AfterFunc(m.opts.AwayAfter, m.setAway)
	}
}

func (m *Mirror) setAway() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.away && !m.current {
		m.away = true
		m.notifyAll()
	}
}

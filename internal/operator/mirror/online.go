package mirror

import (
	"container/heap"
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/broker"
)

const (
	reasonNeverSeen = v1alpha1.ReasonNeverSeen
	reasonAway      = v1alpha1.ReasonBrokerAway
)

// takeHeartbeat costs little, since there are hundreds a second: the message is not
// even read, and a device that is online is only looked at again when its time would
// be up without it.
func (m *Mirror) takeHeartbeat(msg message) {
	m.takePart(partHeartbeat, msg, nil, func(e *entry, d *Device) bool {
		if !msg.stored.After(d.LastHeartbeat) {
			return false
		}
		d.LastHeartbeat = msg.stored
		if msg.stored.After(e.gone) {
			e.gone = time.Time{}
		}
		if d.Online {
			return false
		}
		return m.judge(e, d)
	})
}

// takeDisconnect takes the broker's event. Connections of others than agents end too.
func (m *Mirror) takeDisconnect(msg *nats.Msg) {
	if d, err := broker.ReadDisconnect(msg.Data); err == nil {
		m.Disconnected(d.Device, d.At)
	}
}

// Disconnected says that the broker saw a connection of the device end, by the
// broker's time. Unless a heartbeat that was stored later comes in time, the device is
// no longer online.
func (m *Mirror) Disconnected(id string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.devices[id]
	if e == nil || !e.dev.Online || !at.After(e.dev.LastHeartbeat) || !at.After(e.gone) {
		return
	}
	e.gone = at
	if m.judge(e, &e.dev) {
		m.notify(id)
	}
}

// judge says whether the device is online, and looks again when that may change. It
// tells whether something changed.
func (m *Mirror) judge(e *entry, d *Device) (changed bool) {
	wasOnline, wasReason := d.Online, d.OnlineReason
	left, reason := m.left(e)
	switch {
	case d.LastHeartbeat.IsZero():
		d.Online, d.OnlineReason = false, reasonNeverSeen
	case left > 0:
		d.Online, d.OnlineReason = true, v1alpha1.ReasonHeartbeats
		m.schedule(e, monotonic()+left)
	default:
		d.Online, d.OnlineReason = false, reason
		e.gone, e.due = time.Time{}, 0
	}
	return d.Online != wasOnline || d.OnlineReason != wasReason
}

// left is how long the device is online unless it is heard again, and why it is not
// any more then.
func (m *Mirror) left(e *entry) (time.Duration, string) {
	now := m.now()
	left, reason := e.dev.LastHeartbeat.Add(m.opts.HeartbeatTimeout).Sub(now), v1alpha1.ReasonHeartbeatsLost
	if !e.gone.IsZero() {
		if gone := e.gone.Add(m.opts.DisconnectGrace).Sub(now); gone < left {
			left, reason = gone, v1alpha1.ReasonDisconnected
		}
	}
	if e.dev.Online { // grace is for those that could not be heard, not for the dead
		left = max(left, m.graceEnd-monotonic())
	}
	return left, reason
}

// now is the broker's time, as early as it can be: a device is lost late, never early.
func (m *Mirror) now() time.Time {
	if now, ok := m.clock.Earliest(); ok {
		return now
	}
	return time.Now()
}

var processStart = time.Now()

// monotonic is a clock that nobody sets.
func monotonic() time.Duration { return time.Since(processStart) }

// timer is when a device is to be looked at. One that is not at the entry's due time
// is stale.
type timer struct {
	at time.Duration
	e  *entry
}

type timerHeap []timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	*h = (*h)[:last]
	return t
}

// schedule has e looked at at that time and not at another.
func (m *Mirror) schedule(e *entry, at time.Duration) {
	e.due = at
	heap.Push(&m.timers, timer{at, e})
	if m.timers[0].e == e {
		m.wakeTimers()
	}
}

func (m *Mirror) wakeTimers() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// runTimers looks at devices whose time is up, until ctx ends.
func (m *Mirror) runTimers(ctx context.Context) {
	clock := time.NewTimer(0)
	defer clock.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-clock.C:
		}
		if wait, some := m.expire(); some {
			clock.Reset(wait)
		}
	}
}

// expire judges the devices whose time is up, and says when the next one's is. While
// the mirror is not current nobody's is: heartbeats may be stored that were not read.
func (m *Mirror) expire() (wait time.Duration, some bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.current && len(m.timers) > 0 {
		next := m.timers[0]
		if wait := next.at - monotonic(); wait > 0 {
			return wait, true
		}
		heap.Pop(&m.timers)
		if next.at != next.e.due {
			continue
		}
		next.e.due = 0
		if m.judge(next.e, &next.e.dev) {
			m.notify(next.e.dev.ID)
		}
	}
	return 0, false
}

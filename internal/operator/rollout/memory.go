package rollout

import (
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// restoredGrace is how long after a start a device has at least until its deadline:
// what it did meanwhile is not known.
const restoredGrace = time.Minute

// Memory is what only time tells of the devices of one rollout. It is of one
// revision: a new one starts with a new memory. It is not safe for concurrent use.
type Memory struct {
	started  time.Time
	restored bool
	ranAll   bool
	devices  map[string]*memo
}

type memo struct {
	since   time.Time // zero: not online with the current revision
	wasGone bool      // it was seen without the current revision, or offline
	ran     bool
	written uint64 // the revision of desired state from which on it has the current one; 0: it has not
	void    uint64 // verdicts on desired state of this revision or earlier do not count
}

// NewMemory is that of a rollout which starts now.
func NewMemory(started time.Time) *Memory {
	return &Memory{started: started, devices: map[string]*memo{}}
}

// RestoreMemory is that of a rollout which started earlier and was followed by
// another process. Devices that have the current revision have it since the broker
// stored it, as far as is known. complete says that the rollout was complete: they
// have run it.
func RestoreMemory(started time.Time, complete bool) *Memory {
	m := NewMemory(started)
	m.restored, m.ranAll = true, complete
	return m
}

// Started is when the rollout began, or was last resumed.
func (m *Memory) Started() time.Time { return m.started }

// Fill completes what is known of a device. It has to be called for each device that
// matches, each time.
func (m *Memory) Fill(now time.Time, deadline time.Duration, d *Device) {
	e := m.devices[d.ID]
	first := e == nil
	if first {
		e = &memo{}
		m.devices[d.ID] = e
	}
	if !d.Updated {
		*e = memo{wasGone: true}
		return
	}
	if again := e.void != 0 && e.written <= e.void && d.Revision > e.void; e.written == 0 || again {
		e.written = d.Revision
		e.ran = e.ran || first && m.ranAll
		if again {
			e.since, e.wasGone = time.Time{}, true
		}
	}
	switch {
	case !d.Online:
		e.since, e.wasGone = time.Time{}, true
	case e.since.IsZero() && m.restored && !e.wasGone:
		e.since = latest(m.started, d.Stored, now.Add(min(restoredGrace, deadline)-deadline))
	case e.since.IsZero():
		e.since = now
	}
	d.Current = d.Reported >= e.written
	e.ran = e.ran || d.Running()
	d.Since, d.Ran = e.since, e.ran
	d.Retry = d.Revision <= e.void && d.Current && !d.Running() && (d.Phase == command.PhaseRejected || d.Phase == command.PhaseFailed)
}

// Resume lets the rollout go on after it has stopped: what failed is tried anew, with
// the whole deadline before it.
func (m *Memory) Resume(now time.Time, devices []Device) {
	m.started, m.restored = now, false
	for i := range devices {
		d := &devices[i]
		e := m.devices[d.ID]
		if e == nil || !d.Updated || d.Running() {
			continue
		}
		e.void = d.Revision
		if !e.since.IsZero() {
			e.since = now
		}
	}
}

// Retain forgets the devices that keep refuses.
func (m *Memory) Retain(keep func(id string) bool) {
	for id := range m.devices {
		if !keep(id) {
			delete(m.devices, id)
		}
	}
}

// Interrupt starts the clocks of all devices anew: for a time nobody could hear them.
func (m *Memory) Interrupt() {
	m.restored = false
	for _, e := range m.devices {
		e.since = time.Time{}
	}
}

func latest(times ...time.Time) time.Time {
	var last time.Time
	for _, t := range times {
		if t.After(last) {
			last = t
		}
	}
	return last
}

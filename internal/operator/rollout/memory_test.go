package rollout

import (
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

const deadline = 10 * time.Minute

func updated(revision, reported uint64, phase command.Phase) Device {
	return Device{ID: "d", Online: true, Has: true, Updated: true, Revision: revision, Stored: now, Reported: reported, Phase: phase}
}

func fill(m *Memory, at time.Time, d Device) Device {
	m.Fill(at, deadline, &d)
	return d
}

func TestReportsOfEarlierRevisionsDoNotCount(t *testing.T) {
	m := NewMemory(now)
	fill(m, now, Device{ID: "d", Online: true})
	if d := fill(m, now, updated(7, 6, command.PhaseRunning)); d.Current || d.Running() {
		t.Errorf("a report on 6 speaks of 7: %+v", d)
	}
	// The document has gone on to 9 with keys of others: 7 has the current revision as
	// well.
	if d := fill(m, now, updated(9, 7, command.PhaseRunning)); !d.Running() || !d.Ran {
		t.Errorf("%+v", d)
	}
	if d := fill(m, now, updated(9, 9, command.PhaseBackoff)); d.Running() || !d.Ran {
		t.Errorf("%+v", d)
	}
	// Somebody took it away and it was written anew.
	fill(m, now, Device{ID: "d", Online: true, Reported: 9, Phase: command.PhaseRunning})
	if d := fill(m, now, updated(11, 9, command.PhaseRunning)); d.Current || d.Ran {
		t.Errorf("%+v", d)
	}
}

func TestTheClockRunsWhileOnline(t *testing.T) {
	m := NewMemory(now)
	at := func(after time.Duration, online bool) time.Time {
		d := updated(7, 7, command.PhasePending)
		d.Online = online
		return fill(m, now.Add(after), d).Since
	}
	for _, step := range []struct {
		after  time.Duration
		online bool
		want   time.Time
	}{
		{0, true, now},
		{time.Minute, true, now},
		{2 * time.Minute, false, time.Time{}},
		{time.Hour, true, now.Add(time.Hour)},
		{2 * time.Hour, true, now.Add(time.Hour)},
	} {
		if got := at(step.after, step.online); !got.Equal(step.want) {
			t.Errorf("after %v: since %v, want %v", step.after, got, step.want)
		}
	}
	m.Interrupt()
	if got := at(3*time.Hour, true); !got.Equal(now.Add(3 * time.Hour)) {
		t.Errorf("after an interruption: since %v", got)
	}
}

func TestRestore(t *testing.T) {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name            string
		started, stored time.Time
		want            time.Time
	}{
		{"written while the rollout ran", ago(8 * time.Minute), ago(3 * time.Minute), ago(3 * time.Minute)},
		{"written before", ago(8 * time.Minute), ago(time.Hour), ago(8 * time.Minute)},
		{"long ago: some time is left to be heard", ago(3 * time.Hour), ago(2 * time.Hour), ago(deadline - restoredGrace)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := RestoreMemory(c.started, false)
			d := updated(7, 7, command.PhasePending)
			d.Stored = c.stored
			if got := fill(m, now, d); !got.Since.Equal(c.want) || got.Ran {
				t.Errorf("since %v, want %v; ran %v", got.Since, c.want, got.Ran)
			}
		})
	}
	t.Run("one that returns has all its time", func(t *testing.T) {
		m := RestoreMemory(ago(time.Hour), false)
		d := updated(7, 7, command.PhasePending)
		d.Online = false
		fill(m, now, d)
		d.Online = true
		if got := fill(m, now.Add(time.Minute), d); !got.Since.Equal(now.Add(time.Minute)) {
			t.Errorf("since %v", got.Since)
		}
	})
	t.Run("in a complete rollout they have run it", func(t *testing.T) {
		m := RestoreMemory(ago(time.Hour), true)
		if got := fill(m, now, updated(7, 7, command.PhaseBackoff)); !got.Ran {
			t.Error("it counts as never run")
		}
		other := Device{ID: "other", Online: true}
		m.Fill(now, deadline, &other)
		other = updated(8, 8, command.PhaseBackoff)
		other.ID = "other"
		if m.Fill(now, deadline, &other); other.Ran {
			t.Error("one that was taken since counts as run")
		}
	})
}

func TestResumeTriesAnew(t *testing.T) {
	m := NewMemory(now)
	rejected := updated(7, 7, command.PhaseRejected)
	d := fill(m, now, rejected)
	if d.Retry {
		t.Fatal("nothing was resumed")
	}
	later := now.Add(time.Hour)
	m.Resume(later, []Device{d})
	if !m.Started().Equal(later) {
		t.Errorf("started %v", m.Started())
	}
	if d = fill(m, later, rejected); !d.Retry {
		t.Fatalf("not tried anew: %+v", d)
	}
	// It is written again: what the device says of 7 is over.
	again := later.Add(time.Minute)
	if d = fill(m, again, updated(8, 7, command.PhaseRejected)); d.Retry || d.Current || !d.Since.Equal(again) {
		t.Fatalf("%+v", d)
	}
	if d = fill(m, again, updated(8, 8, command.PhaseRejected)); d.Retry || !d.Current {
		t.Fatalf("the second verdict does not count: %+v", d)
	}

	// What only takes long gets its time again, and is not written to.
	m = NewMemory(now)
	d = fill(m, now, updated(7, 7, command.PhaseBackoff))
	m.Resume(later, []Device{d})
	if d = fill(m, later, updated(7, 7, command.PhaseBackoff)); d.Retry || !d.Since.Equal(later) {
		t.Fatalf("%+v", d)
	}
}

func TestRetain(t *testing.T) {
	m := NewMemory(now)
	fill(m, now, updated(7, 7, command.PhaseRunning))
	m.Retain(func(id string) bool { return id == "d" })
	if len(m.devices) != 1 {
		t.Fatal("forgotten")
	}
	m.Retain(func(string) bool { return false })
	if len(m.devices) != 0 {
		t.Fatal("kept")
	}
}

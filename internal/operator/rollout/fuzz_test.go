package rollout

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// fleet is a number of devices that do as they please, and the documents that a
// rollout wrote for them.
type fleet struct {
	rnd      *rand.Rand
	now      time.Time
	revision uint64
	devices  []Device
	mem      *Memory
	in       Input
}

func newFleet(seed uint64, size int, p Params) *fleet {
	f := &fleet{rnd: rand.New(rand.NewPCG(seed, 1)), now: now, mem: NewMemory(now), in: Input{Params: p}}
	for i := range size {
		d := Device{ID: fmt.Sprintf("d%03d", i), Online: f.rnd.IntN(4) > 0, Paused: f.rnd.IntN(16) == 0}
		if f.rnd.IntN(16) == 0 {
			d.Conflict = "conflict"
		}
		if f.rnd.IntN(2) == 0 {
			f.revision++
			d.Has, d.Revision, d.Reported, d.Phase = true, f.revision, f.revision, command.PhaseRunning
		}
		f.devices = append(f.devices, d)
	}
	return f
}

// plan fills in what the memory knows and decides.
func (f *fleet) plan() Output {
	f.in.Now, f.in.Devices = f.now, nil
	for _, d := range f.devices {
		f.mem.Fill(f.now, f.in.ProgressDeadline, &d)
		f.in.Devices = append(f.in.Devices, d)
	}
	out := Plan(f.in)
	f.in.Stopped = out.Stopped
	return out
}

func (f *fleet) write(ids []string) {
	for _, id := range ids {
		for i := range f.devices {
			if d := &f.devices[i]; d.ID == id {
				f.revision++
				d.Has, d.Updated, d.Revision, d.Stored = true, true, f.revision, f.now
			}
		}
	}
}

// live lets every device do something.
func (f *fleet) live(good bool) {
	f.now = f.now.Add(time.Duration(f.rnd.IntN(120)) * time.Second)
	phases := []command.Phase{command.PhasePending, command.PhaseRunning, command.PhaseBackoff, command.PhaseRejected, command.PhaseFailed, command.PhaseRuntimeUnavailable}
	for i := range f.devices {
		d := &f.devices[i]
		if f.rnd.IntN(8) == 0 {
			d.Online = !d.Online
		}
		if !d.Online || !d.Has || f.rnd.IntN(3) == 0 {
			continue
		}
		d.Reported, d.Phase = d.Revision, command.PhaseRunning
		if !good {
			d.Phase = phases[f.rnd.IntN(len(phases))]
		}
	}
}

// check holds what must be so of every decision.
func (f *fleet) check(t *testing.T, out Output) {
	t.Helper()
	by := map[string]*Device{}
	for i := range f.in.Devices {
		by[f.in.Devices[i].ID] = &f.in.Devices[i]
	}
	batch := scale(f.in.BatchSize, len(f.devices))
	if len(out.Take) > max(batch-out.InFlight, 0) {
		t.Fatalf("%d in flight and %d more, of %d", out.InFlight, len(out.Take), batch)
	}
	worse := 0
	for i, id := range out.Take {
		d := by[id]
		if !d.Online || d.Paused || d.Conflict != "" || d.Updated && !d.Retry {
			t.Fatalf("took %+v", d)
		}
		if i > 0 && id <= out.Take[i-1] {
			t.Fatalf("took %s after %s", id, out.Take[i-1])
		}
		if !d.unavailable() {
			worse++
		}
	}
	if limit := scale(f.in.MaxUnavailable, len(f.devices)); worse > 0 && out.Unavailable+worse > limit {
		t.Fatalf("%d are unavailable and %d more, of %d", out.Unavailable, worse, limit)
	}
	if len(out.Take) > 0 && out.Phase != v1alpha1.RolloutProgressing {
		t.Fatalf("took %v in phase %s", out.Take, out.Phase)
	}
	if (f.in.Paused || out.Stopped != "") && len(out.Take) > 0 {
		t.Fatalf("took %v; paused %v, stopped %q", out.Take, f.in.Paused, out.Stopped)
	}
	if out.Failed < out.Rejected || out.Updated < out.Ready || out.Matched != out.Online+out.Offline || out.Missed > out.Failed {
		t.Fatalf("counts %+v", out.Counts)
	}
	if !out.Next.IsZero() && !out.Next.After(f.now) {
		t.Fatalf("look again in the past: %v at %v", out.Next, f.now)
	}
}

// FuzzRollout drives fleets of devices that go, return, run, break and refuse.
func FuzzRollout(f *testing.F) {
	f.Add(uint64(1), uint8(20), uint8(25), uint8(25), uint8(100), false)
	f.Add(uint64(2), uint8(200), uint8(1), uint8(50), uint8(80), false)
	f.Add(uint64(3), uint8(7), uint8(100), uint8(1), uint8(0), true)
	f.Fuzz(func(t *testing.T, seed uint64, size, batch, unavailable, threshold uint8, paused bool) {
		fl := newFleet(seed, int(size), Params{
			BatchSize: intstr.FromString(fmt.Sprintf("%d%%", batch%100+1)), MaxUnavailable: intstr.FromInt32(int32(unavailable) + 1),
			Paused: paused, SuccessThreshold: int(threshold) % 101, ProgressDeadline: 5 * time.Minute,
		})
		for range 50 {
			out := fl.plan()
			fl.check(t, out)
			fl.write(out.Take)
			fl.live(false)
			if fl.rnd.IntN(20) == 0 && fl.in.Stopped != "" {
				fl.mem.Resume(fl.now, fl.in.Devices)
				fl.in.Stopped = ""
			}
		}
		// Once the devices come back and run what they are told, it ends.
		fl.in.Paused = false
		for i := range fl.devices {
			fl.devices[i].Conflict = ""
		}
		for range 100 * (len(fl.devices) + 1) {
			if fl.in.Stopped != "" {
				fl.mem.Resume(fl.now, fl.in.Devices)
				fl.in.Stopped = ""
			}
			out := fl.plan()
			fl.check(t, out)
			if out.Phase == v1alpha1.RolloutComplete {
				return
			}
			fl.write(out.Take)
			fl.live(true)
		}
		t.Fatalf("not complete: %+v", fl.plan())
	})
}

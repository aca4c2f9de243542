package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// parse makes devices of words, one device each. The letters of a word, in any order:
//
//	o online   P paused   c in conflict
//	h has an earlier revision, which runs     b has an earlier one, which does not
//	u updated and just written                r it runs  p it is pending  f failed  x rejected
//	t written longer ago than the deadline    R has run   ! to be tried anew
func parse(words string) []Device {
	var all []Device
	for i, word := range strings.Fields(words) {
		d := Device{ID: fmt.Sprintf("d%02d", i)}
		for _, c := range word {
			switch c {
			case '-': // nothing of all that
			case 'o':
				d.Online = true
			case 'P':
				d.Paused = true
			case 'c':
				d.Conflict = "another has the port"
			case 'h':
				d.Has, d.Phase = true, command.PhaseRunning
			case 'b':
				d.Has, d.Phase = true, command.PhaseBackoff
			case 'u':
				d.Has, d.Updated, d.Since = true, true, now
			case 't':
				d.Since = now.Add(-time.Hour)
			case 'r':
				d.Current, d.Phase = true, command.PhaseRunning
			case 'p':
				d.Current, d.Phase, d.Message = true, command.PhasePending, "no image"
			case 'f':
				d.Current, d.Phase, d.Message = true, command.PhaseFailed, "exit code 1"
			case 'x':
				d.Current, d.Phase, d.Message = true, command.PhaseRejected, "bad score"
			case 'R':
				d.Ran = true
			case '!':
				d.Retry = true
			default:
				panic(string(c))
			}
		}
		if !d.Online {
			d.Since = time.Time{}
		}
		all = append(all, d)
	}
	return all
}

func TestPlan(t *testing.T) {
	number := intstr.FromInt32
	for _, c := range []struct {
		name        string
		devices     string
		batch       intstr.IntOrString
		unavailable intstr.IntOrString // zero: as batch
		threshold   int                // 0: 100
		paused      bool
		stopped     string

		take    string
		phase   v1alpha1.RolloutPhase
		counts  string // matched updated ready rejected failed offline conflicts paused
		says    string // in Stopped or Blocked
		waitFor time.Duration
	}{
		{name: "nothing matches", phase: v1alpha1.RolloutComplete, counts: "0 0 0 0 0 0 0 0"},
		{name: "the first batch, in the order of names", devices: "o o o o", batch: number(2), take: "d00 d01",
			phase: v1alpha1.RolloutProgressing, counts: "4 0 0 0 0 0 0 0"},
		{name: "a share is rounded up", devices: "o o o o o", batch: intstr.FromString("30%"), take: "d00 d01",
			phase: v1alpha1.RolloutProgressing, counts: "5 0 0 0 0 0 0 0"},
		{name: "in flight fills the batch", devices: "ou oup o o", batch: number(2),
			phase: v1alpha1.RolloutProgressing, counts: "4 2 0 0 0 0 0 0", waitFor: 10 * time.Minute},
		{name: "one is through, one goes on", devices: "our oup o o", batch: number(2), take: "d02",
			phase: v1alpha1.RolloutProgressing, counts: "4 2 1 0 0 0 0 0", waitFor: 10 * time.Minute},
		{name: "a report on the earlier revision is none", devices: "ouh o", batch: number(1),
			phase: v1alpha1.RolloutProgressing, counts: "2 1 0 0 0 0 0 0", waitFor: 10 * time.Minute},
		{name: "offline ones are not waited for", devices: "our - u our", batch: number(1),
			phase: v1alpha1.RolloutComplete, counts: "4 3 2 0 0 2 0 0"},
		{name: "all offline", devices: "- -", batch: number(1), phase: v1alpha1.RolloutComplete, counts: "2 0 0 0 0 2 0 0"},
		{name: "one that returns is taken", devices: "our o -", batch: number(1), take: "d01",
			phase: v1alpha1.RolloutProgressing, counts: "3 1 1 0 0 1 0 0"},
		{name: "a paused device is left alone", devices: "our oPh", batch: number(1),
			phase: v1alpha1.RolloutComplete, counts: "2 1 1 0 0 0 0 1"},
		{name: "a conflict holds completion back, and nobody else", devices: "oc o our", batch: number(1), take: "d01",
			phase: v1alpha1.RolloutProgressing, counts: "3 1 1 0 0 0 1 0"},
		{name: "nothing left but a conflict", devices: "oc our", batch: number(1),
			phase: v1alpha1.RolloutProgressing, counts: "2 1 1 0 0 0 1 0"},
		{name: "paused takes nobody and judges nobody", devices: "oux o o", batch: number(1), paused: true,
			phase: v1alpha1.RolloutPaused, counts: "3 1 0 1 1 0 0 0"},
		{name: "rejected at once", devices: "oux o o", batch: number(1),
			phase: v1alpha1.RolloutStopped, counts: "3 1 0 1 1 0 0 0", says: "1 of the 1 devices that are through failed; 100 % have to succeed; d00: rejected: bad score"},
		{name: "failed at once", devices: "ouf o o", batch: number(1),
			phase: v1alpha1.RolloutStopped, counts: "3 1 0 0 1 0 0 0", says: "d00: failed: exit code 1"},
		{name: "pending is given its time", devices: "oup o", batch: number(1),
			phase: v1alpha1.RolloutProgressing, counts: "2 1 0 0 0 0 0 0", waitFor: 10 * time.Minute},
		{name: "and no more", devices: "oupt o", batch: number(1),
			phase: v1alpha1.RolloutStopped, counts: "2 1 0 0 1 0 0 0", says: "d00: timeout: does not run after 10m0s: pending: no image"},
		{name: "silence as well", devices: "out o", batch: number(1),
			phase: v1alpha1.RolloutStopped, counts: "2 1 0 0 1 0 0 0", says: "has not reported on it"},
		{name: "the first batch has to be through", devices: "oux oup o o", batch: number(2),
			phase: v1alpha1.RolloutProgressing, counts: "4 2 0 1 1 0 0 0", waitFor: 10 * time.Minute},
		{name: "or all of the devices", devices: "oux", batch: number(5),
			phase: v1alpha1.RolloutStopped, counts: "1 1 0 1 1 0 0 0", says: "rejected"},
		{name: "above the threshold it goes on", devices: "oux our our our o", batch: number(2), threshold: 75, take: "d04",
			phase: v1alpha1.RolloutProgressing, counts: "5 4 3 1 1 0 0 0"},
		{name: "and is complete with failures", devices: "oux our our our", batch: number(2), threshold: 75,
			phase: v1alpha1.RolloutComplete, counts: "4 4 3 1 1 0 0 0"},
		{name: "below it does not", devices: "oux our our our o", batch: number(2), threshold: 76,
			phase: v1alpha1.RolloutStopped, counts: "5 4 3 1 1 0 0 0", says: "1 of the 4"},
		{name: "who ran it and went offline still speaks for it", devices: "oux ur ur ur o", batch: number(2), threshold: 75, take: "d04",
			phase: v1alpha1.RolloutProgressing, counts: "5 4 0 1 1 3 0 0"},
		{name: "who refused it and went offline still speaks against it", devices: "ux o", batch: number(1),
			phase: v1alpha1.RolloutStopped, counts: "2 1 0 1 1 1 0 0", says: "rejected"},
		{name: "stopped stays stopped, for those who return too", devices: "our o o", batch: number(5), stopped: "because",
			phase: v1alpha1.RolloutStopped, counts: "3 1 1 0 0 0 0 0", says: "because"},
		{name: "what broke later is not the rollout's", devices: "oupRt o", batch: number(2), take: "d01",
			phase: v1alpha1.RolloutProgressing, counts: "2 1 0 0 0 0 0 0"},
		{name: "nor does it undo completion", devices: "oupRt our", batch: number(1),
			phase: v1alpha1.RolloutComplete, counts: "2 2 1 0 0 0 0 0"},
		{name: "what broke uses the budget up", devices: "oupRt oh oh", batch: number(2), unavailable: number(1),
			phase: v1alpha1.RolloutProgressing, counts: "3 1 0 0 0 0 0 0", says: "2 devices are to get it, and 1 that are online are not ready, of 1 allowed"},
		{name: "a broken one can be taken whatever the budget", devices: "oh ob oh", batch: number(2), unavailable: number(1), take: "d01",
			phase: v1alpha1.RolloutProgressing, counts: "3 0 0 0 0 0 0 0"},
		{name: "budget below batch", devices: "oh oh oh", batch: number(3), unavailable: number(1), take: "d00",
			phase: v1alpha1.RolloutProgressing, counts: "3 0 0 0 0 0 0 0"},
		{name: "a share of the budget is rounded up too", devices: "oh oh oh", batch: number(3), unavailable: intstr.FromString("40%"), take: "d00 d01",
			phase: v1alpha1.RolloutProgressing, counts: "3 0 0 0 0 0 0 0"},
		{name: "tried anew", devices: "oux! o", batch: number(1), take: "d00",
			phase: v1alpha1.RolloutProgressing, counts: "2 1 0 0 0 0 0 0"},
		{name: "tried anew, and too many are in flight", devices: "oux! oup o", batch: number(1),
			phase: v1alpha1.RolloutProgressing, counts: "3 2 0 0 0 0 0 0", waitFor: 10 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Input{Now: now, Devices: parse(c.devices), Stopped: c.stopped}
			in.Params = Params{BatchSize: c.batch, MaxUnavailable: c.batch, Paused: c.paused, SuccessThreshold: c.threshold, ProgressDeadline: DefaultProgressDeadline}
			if c.threshold == 0 {
				in.SuccessThreshold = 100
			}
			if c.unavailable != (intstr.IntOrString{}) {
				in.MaxUnavailable = c.unavailable
			}
			out := Plan(in)
			if got := strings.Join(out.Take, " "); got != c.take {
				t.Errorf("take %q, want %q", got, c.take)
			}
			if out.Phase != c.phase {
				t.Errorf("phase %s, want %s (%s)", out.Phase, c.phase, out.Stopped)
			}
			n := out.Counts
			if got := fmt.Sprint(n.Matched, n.Updated, n.Ready, n.Rejected, n.Failed, n.Offline, n.Conflicts, n.Paused); got != c.counts {
				t.Errorf("counts %s, want %s", got, c.counts)
			}
			if (out.Phase == v1alpha1.RolloutStopped) != (out.Stopped != "") {
				t.Errorf("phase %s, stopped %q", out.Phase, out.Stopped)
			}
			if says := out.Stopped + out.Blocked; (c.says == "") != (says == "") || !strings.Contains(says, c.says) {
				t.Errorf("says %q, want %q", says, c.says)
			}
			want := time.Time{}
			if c.waitFor != 0 {
				want = now.Add(c.waitFor)
			}
			if !out.Next.Equal(want) {
				t.Errorf("next %v, want %v", out.Next, want)
			}
		})
	}
}

func TestFailuresAreTheFirstTen(t *testing.T) {
	out := Plan(Input{Now: now, Params: ParamsOf(v1alpha1.Rollout{}), Devices: parse("oc " + strings.Repeat("oux ", 20))})
	if len(out.Failures) != 10 || out.Failures[0] != (v1alpha1.DeviceFailure{Device: "d00", Phase: "conflict", Message: "another has the port"}) ||
		out.Failures[9] != (v1alpha1.DeviceFailure{Device: "d09", Phase: "rejected", Message: "bad score"}) {
		t.Errorf("%+v", out.Failures)
	}
	if !strings.Contains(out.Stopped, "d01: rejected") {
		t.Errorf("a conflict is no reason to stop: %s", out.Stopped)
	}
}

func TestParamsOf(t *testing.T) {
	p := ParamsOf(v1alpha1.Rollout{})
	want := Params{BatchSize: intstr.FromString("25%"), MaxUnavailable: intstr.FromString("25%"), SuccessThreshold: 100, ProgressDeadline: 10 * time.Minute}
	if p != want {
		t.Errorf("%+v", p)
	}
	three, share, zero, minute := intstr.FromInt32(3), intstr.FromString("5%"), int32(0), int32(60)
	p = ParamsOf(v1alpha1.Rollout{BatchSize: &three, MaxUnavailable: &share, Paused: true, SuccessThreshold: &zero, ProgressDeadlineSeconds: &minute})
	want = Params{BatchSize: three, MaxUnavailable: share, Paused: true, ProgressDeadline: time.Minute}
	if p != want {
		t.Errorf("%+v", p)
	}
	if p := ParamsOf(v1alpha1.Rollout{BatchSize: &three}); p.MaxUnavailable != three {
		t.Errorf("max unavailable is not that of the batch: %+v", p)
	}
}

func TestOrderOfDevicesIsThatOfTake(t *testing.T) {
	out := Plan(Input{Now: now, Params: ParamsOf(v1alpha1.Rollout{}), Devices: parse(strings.Repeat("o ", 100))})
	if len(out.Take) != 25 || !slices.IsSorted(out.Take) {
		t.Errorf("%v", out.Take)
	}
}

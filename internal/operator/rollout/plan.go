package rollout

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// PhaseTimeout and PhaseConflict stand in v1alpha1.DeviceFailure for what a device
// does not say itself.
const (
	PhaseTimeout  = "timeout"
	PhaseConflict = "conflict"
)

// Plan decides.
func Plan(in Input) Output {
	var out Output
	for i := range in.Devices {
		out.count(&in, &in.Devices[i])
	}
	batch := scale(in.BatchSize, out.Matched)
	out.Stopped = in.Stopped
	if out.Stopped == "" && !in.Paused {
		out.Stopped = out.judge(in.SuccessThreshold, batch)
	}
	switch {
	case in.Paused:
		out.Phase, out.Stopped = v1alpha1.RolloutPaused, ""
	case out.Stopped != "":
		out.Phase = v1alpha1.RolloutStopped
	case out.Waiting == 0 && out.InFlight == 0 && out.Conflicts == 0:
		out.Phase = v1alpha1.RolloutComplete
	default:
		out.Phase = v1alpha1.RolloutProgressing
		out.take(&in, batch, scale(in.MaxUnavailable, out.Matched))
	}
	return out
}

// Running tells whether the device says that the current revision runs.
func (d *Device) Running() bool { return d.Updated && d.Current && d.Phase.AsDesired() }

// unavailable tells whether the device is online and lacks what it was told to run,
// of whatever revision.
func (d *Device) unavailable() bool {
	return d.Online && d.Has && !(d.Phase.AsDesired() && (d.Current || !d.Updated))
}

// waits tells whether the device is to be taken.
func (d *Device) waits() bool {
	return d.Online && !d.Paused && d.Conflict == "" && (!d.Updated || d.Retry)
}

// failure is how the device failed with the current revision; empty: it has not.
func (d *Device) failure(now time.Time, deadline time.Duration) (phase, message string) {
	switch {
	case !d.Updated || d.Retry || d.Running():
		return "", ""
	case d.Current && (d.Phase == command.PhaseRejected || d.Phase == command.PhaseFailed):
		return string(d.Phase), d.Message
	case d.Ran || !d.Online || d.Since.IsZero() || now.Before(d.Since.Add(deadline)):
		return "", ""
	}
	message = fmt.Sprintf("does not run after %v", deadline)
	switch {
	case !d.Current:
		message += ": the device has not reported on it"
	case d.Message != "":
		message += fmt.Sprintf(": %s: %s", d.Phase, d.Message)
	default:
		message += ": " + string(d.Phase)
	}
	return PhaseTimeout, message
}

// count adds the device to the counts and failures.
func (o *Output) count(in *Input, d *Device) {
	o.Matched++
	add := func(n *int, when bool) {
		if when {
			*n++
		}
	}
	running := d.Running()
	phase, message := d.failure(in.Now, in.ProgressDeadline)
	add(&o.Online, d.Online)
	add(&o.Offline, !d.Online)
	add(&o.Paused, d.Paused)
	add(&o.Updated, d.Updated)
	add(&o.Ready, running && d.Online)
	add(&o.Rejected, phase == string(command.PhaseRejected))
	add(&o.Failed, phase != "")
	add(&o.Conflicts, d.Conflict != "" && !d.Updated)
	add(&o.Waiting, d.waits())
	add(&o.Unavailable, d.unavailable())
	add(&o.Succeeded, d.Updated && (running || d.Ran))
	add(&o.Missed, phase != "" && !d.Ran)
	if d.inFlight(running, phase) {
		o.InFlight++
		if due := d.Since.Add(in.ProgressDeadline); !d.Since.IsZero() && (o.Next.IsZero() || due.Before(o.Next)) {
			o.Next = due
		}
	}
	if phase == "" && d.Conflict != "" && !d.Updated {
		phase, message = PhaseConflict, d.Conflict
	}
	if phase != "" && len(o.Failures) < maxFailures {
		o.Failures = append(o.Failures, v1alpha1.DeviceFailure{Device: d.ID, Phase: phase, Message: message})
	}
}

func (d *Device) inFlight(running bool, failure string) bool {
	return d.Updated && d.Online && !running && !d.Ran && !d.Retry && failure == ""
}

// judge says why the rollout stops; empty: it does not.
func (o *Output) judge(threshold, batch int) string {
	through := o.Succeeded + o.Missed
	all := o.Waiting == 0 && o.InFlight == 0
	if o.Missed == 0 || through < batch && !all || o.Succeeded*100 >= threshold*through {
		return ""
	}
	why := fmt.Sprintf("%d of the %d devices that are through failed; %d %% have to succeed", o.Missed, through, threshold)
	for _, f := range o.Failures {
		if f.Phase != PhaseConflict {
			return why + fmt.Sprintf("; %s: %s: %s", f.Device, f.Phase, f.Message)
		}
	}
	return why
}

// take chooses the devices that get the current revision now. One that lacks what it
// was told to run can be taken whatever the budget: it cannot get worse, and a
// revision that broke it could not be undone otherwise.
func (o *Output) take(in *Input, batch, maxUnavailable int) {
	slots, budget := batch-o.InFlight, maxUnavailable-o.Unavailable
	for i := range in.Devices {
		if slots <= 0 {
			break
		}
		d := &in.Devices[i]
		if !d.waits() {
			continue
		}
		if !d.unavailable() {
			if budget <= 0 {
				continue
			}
			budget--
		}
		slots--
		o.Take = append(o.Take, d.ID)
	}
	if len(o.Take) == 0 && o.InFlight == 0 && o.Waiting > 0 {
		o.Blocked = fmt.Sprintf("%d devices are to get it, and %d that are online are not ready, of %d allowed by maxUnavailable", o.Waiting, o.Unavailable, maxUnavailable)
	}
}

// scale is n of total: a number as it is, a share rounded up; at least 1. Both sizes
// are rounded the same way, since one is the default of the other.
func scale(n intstr.IntOrString, total int) int {
	v, err := intstr.GetScaledValueFromIntOrPercent(&n, total, true)
	if err != nil {
		return 1 // the API server takes neither; the least that goes on
	}
	return max(v, 1)
}

package rollout

import (
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// Defaults of [Params], those of v1alpha1.Rollout.
const (
	DefaultBatchSize        = "25%"
	DefaultSuccessThreshold = 100
	DefaultProgressDeadline = 10 * time.Minute
)

// maxFailures is how many failures [Output] has at most.
const maxFailures = 10

// Params are how a rollout goes.
type Params struct {
	BatchSize        intstr.IntOrString // devices in flight, a number or a share of the matched ones
	MaxUnavailable   intstr.IntOrString // devices that may be online and not ready
	Paused           bool
	SuccessThreshold int           // percent
	ProgressDeadline time.Duration // for a device to run it, online
}

// ParamsOf are the parameters of a Deployment, with the defaults of what it leaves
// out.
func ParamsOf(r v1alpha1.Rollout) Params {
	p := Params{
		BatchSize: intstr.FromString(DefaultBatchSize), Paused: r.Paused,
		SuccessThreshold: DefaultSuccessThreshold, ProgressDeadline: DefaultProgressDeadline,
	}
	if r.BatchSize != nil {
		p.BatchSize = *r.BatchSize
	}
	p.MaxUnavailable = p.BatchSize
	if r.MaxUnavailable != nil {
		p.MaxUnavailable = *r.MaxUnavailable
	}
	if r.SuccessThreshold != nil {
		p.SuccessThreshold = int(*r.SuccessThreshold)
	}
	if r.ProgressDeadlineSeconds != nil {
		p.ProgressDeadline = time.Duration(*r.ProgressDeadlineSeconds) * time.Second
	}
	return p
}

// Device is what is known of one matched device. The first fields are facts, the
// last ones are filled in by [Memory.Fill].
type Device struct {
	ID     string
	Online bool
	Paused bool // nothing is written to it
	// Conflict says why it cannot take the current revision; empty: it can.
	Conflict string

	Has      bool      // any revision of the Deployment is in its desired state
	Updated  bool      // the current one is
	Revision uint64    // of its desired state
	Stored   time.Time // when the broker stored that

	// Phase is its last word of the deployment, of whatever revision; empty: it said
	// nothing of it. Reported is the revision of desired state that it speaks of.
	Phase    command.Phase
	Reported uint64
	Message  string // what is wrong, in the device's words

	Current bool      // Phase speaks of the current revision
	Since   time.Time // it is online with the current revision; zero: it is not
	Ran     bool      // it has run the current revision
	Retry   bool      // its verdict is of before a resumption: it is tried anew
}

// Input is all that a decision depends on.
type Input struct {
	Params
	Now time.Time
	// Stopped says why the rollout has stopped by itself, for as long as nothing lifts
	// that; empty: it has not.
	Stopped string
	Devices []Device // that the selector chooses, in the order of their ids
}

// Output is what is to be done, and where the rollout stands.
type Output struct {
	// Take are the devices to which the current revision is to be written now.
	Take []string
	// Next is when a deadline passes; zero: nothing changes by itself.
	Next time.Time

	Phase   v1alpha1.RolloutPhase
	Stopped string // why the rollout has stopped by itself; empty: it has not
	// Blocked says that devices wait to be taken and that nothing is in flight which
	// would let them; empty: that is not so.
	Blocked string
	Counts
	Failures []v1alpha1.DeviceFailure // the first 10, by device
}

// Counts are numbers of devices. A device is counted in as many as apply.
type Counts struct {
	Matched, Updated, Ready, Rejected, Failed, Offline, Conflicts, Paused int

	Online      int
	InFlight    int
	Waiting     int // to be taken, Take included
	Unavailable int // online and not ready
	Succeeded   int // have run the current revision, offline ones included
	Missed      int // failed, and never ran it
}

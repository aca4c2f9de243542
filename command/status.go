package command

import (
	"maps"
	"slices"
	"time"
)

// Status is what a device says of itself; the last one per device is kept. It
// is published when it changes and after each connect.
type Status struct {
	Schema       int       `json:"schema"`
	DeviceID     string    `json:"device_id"`
	AgentVersion string    `json:"agent_version"`
	Protocol     int       `json:"protocol"`
	BootID       string    `json:"boot_id"`    // of the machine's kernel
	Instance     string    `json:"instance"`   // of this run of the agent
	StartedAt    time.Time `json:"started_at"` // of this run, broker time
	Time         time.Time `json:"time"`       // broker time of this status

	// Labels that the device reports of itself. Selection of devices never uses
	// them: see [DeviceLabels].
	Labels map[string]string `json:"labels,omitempty"`

	Runtime         RuntimeState                `json:"runtime"`
	DesiredRevision uint64                      `json:"desired_revision"` // 0: none received
	Deployments     map[string]DeploymentStatus `json:"deployments,omitempty"`
	Conditions      []Condition                 `json:"conditions,omitempty"`
}

func (s Status) schema() int { return s.Schema }

// Phase is where a deployment or service stands.
type Phase string

// The phases.
const (
	PhasePending            Phase = "pending"
	PhasePulling            Phase = "pulling"
	PhaseStarting           Phase = "starting"
	PhaseRunning            Phase = "running"
	PhaseBackoff            Phase = "backoff"
	PhaseExited             Phase = "exited"
	PhaseFailed             Phase = "failed"
	PhaseRemoving           Phase = "removing"
	PhaseRejected           Phase = "rejected"
	PhaseRuntimeUnavailable Phase = "runtime_unavailable"
)

// AsDesired tells whether a deployment or service in that phase is as it was
// desired: it runs, or has ended with code 0 where it is not to be started again.
func (p Phase) AsDesired() bool { return p == PhaseRunning || p == PhaseExited }

// DeploymentStatus is where one deployment stands on one device.
type DeploymentStatus struct {
	Phase    Phase                    `json:"phase"`
	Revision uint64                   `json:"revision"` // desired-state revision that this speaks of
	Error    *ErrorDetail             `json:"error,omitempty"`
	Services map[string]ServiceStatus `json:"services,omitempty"`
}

// Fault is the first fault of the deployment or of one of its services; empty: none.
func (d DeploymentStatus) Fault() string {
	if d.Error != nil {
		return d.Error.Message
	}
	for _, name := range slices.Sorted(maps.Keys(d.Services)) {
		if s := d.Services[name]; s.LastError != "" && !s.Phase.AsDesired() {
			return name + ": " + s.LastError
		}
	}
	return ""
}

// ServiceStatus is where one container of a deployment stands.
type ServiceStatus struct {
	Phase       Phase      `json:"phase"`
	ContainerID string     `json:"container_id,omitempty"`
	Image       string     `json:"image,omitempty"`
	ImageDigest string     `json:"image_digest,omitempty"`
	StartedAt   *time.Time `json:"started_at,omitempty"`
	Restarts    int        `json:"restarts"`
	ExitCode    *int       `json:"exit_code,omitempty"`
	LastError   string     `json:"last_error,omitempty"`
	Health      string     `json:"health,omitempty"`   // starting, healthy or unhealthy; empty: no health check
	Progress    string     `json:"progress,omitempty"` // of a pull, for people: "3.1 of 12.0 MB"
	NextTry     *time.Time `json:"next_try,omitempty"` // in phase backoff: when it is tried again
}

// Condition types of a status.
const (
	ConditionIDClash     = "IDClash"     // another agent uses this device id
	ConditionDamagedFile = "DamagedFile" // a file of the state directory was set aside
	ConditionAuditLost   = "AuditLost"   // audit records could not be kept

	// ConditionDesiredStateInvalid: the last desired state could not be read; what
	// ran before goes on.
	ConditionDesiredStateInvalid = "DesiredStateInvalid"
	// ConditionStatusTruncated: the status would be too large with every deployment
	// in it.
	ConditionStatusTruncated = "StatusTruncated"
	// ConditionStateNotKept: the desired state could not be written to the state
	// directory; a restart without the broker would go on from an older one.
	ConditionStateNotKept = "StateNotKept"
	// ConditionReady: every deployment is as desired. It is there once a desired
	// state was received.
	ConditionReady = "Ready"
)

// Condition is something about the device that is true or not.
type Condition struct {
	Type    string    `json:"type"`
	Status  bool      `json:"status"`
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since"`
}

// HeartbeatInterval is how often a device sends a heartbeat, before jitter.
const HeartbeatInterval = 15 * time.Second

// Heartbeat says that a device is there; the last one per device is kept. Its
// age is told by the time at which the broker stored it, never by the device's
// own clock.
type Heartbeat struct {
	Schema          int       `json:"schema"`
	DeviceID        string    `json:"device_id"`
	BootID          string    `json:"boot_id"`
	Instance        string    `json:"instance"`
	Seq             uint64    `json:"seq"`               // counts heartbeats of this instance, from 1
	Time            time.Time `json:"time"`              // broker time as the agent knows it
	UptimeS         uint64    `json:"uptime_s"`          // seconds since the agent started
	SubscribedForMS int64     `json:"subscribed_for_ms"` // since this connection took up the commands
	DesiredRevision uint64    `json:"desired_revision"`  //
	MemoryRSSBytes  uint64    `json:"memory_rss_bytes"`  //

	// Metrics are counters and gauges of the agent by name, in base units.
	Metrics map[string]float64 `json:"metrics,omitempty"`
}

func (h Heartbeat) schema() int { return h.Schema }

// DeviceLabelsBucket is the KV bucket of the labels that operators give to
// devices; its key is the device id.
const DeviceLabelsBucket = "device-labels"

// DeviceLabelsSubject is where the labels of a device are stored:
// "$KV.device-labels.<device>".
func DeviceLabelsSubject(device string) string { return "$KV." + DeviceLabelsBucket + "." + device }

// DeviceLabels are the labels that an operator gave to a device. Selection by
// label uses these and never what a device reports of itself.
type DeviceLabels struct {
	Schema int               `json:"schema"`
	Labels map[string]string `json:"labels"`
}

func (d DeviceLabels) schema() int { return d.Schema }

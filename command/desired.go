package command

import "encoding/json"

// DesiredState is what one device should run. Its revision is the sequence
// number under which the broker stored it.
type DesiredState struct {
	Schema      int              `json:"schema"`
	Deployments map[string]Score `json:"deployments"`
}

func (d DesiredState) schema() int { return d.Schema }

// ScorePodmanV0 is the score type of containers on Podman or Docker; its data
// is [PodmanV0].
const ScorePodmanV0 = "PodmanV0"

// Score is one deployment: a type, and data that the type defines. A type that
// an agent does not know is reported as rejected with [KindBadRequest].
type Score struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// PodmanV0 is a set of containers, started in the order of Services and removed
// in the reverse order. [Score.Services] reads and checks it.
type PodmanV0 struct {
	Services []Service `json:"services"`
}

// Service is one container. A change of any field replaces the container.
type Service struct {
	Name  string `json:"name"`  // one DNS label
	Image string `json:"image"` // "docker.io/library/busybox:1", or with a digest
	// Command replaces the image's command; the image's entrypoint stays.
	Command []string `json:"command,omitempty"`
	// Entrypoint replaces the image's entrypoint and, as engines do, its command.
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	Workdir    string            `json:"workdir,omitempty"` // absolute; empty: the image's
	User       string            `json:"user,omitempty"`    // "user", "uid", "uid:gid"; empty: the image's
	Ports      []string          `json:"ports,omitempty"`   // see [ParsePort]
	Volumes    []string          `json:"volumes,omitempty"` // see [ParseVolume]
	Restart    string            `json:"restart,omitempty"` // see [RestartAlways]; empty: always
	Pull       string            `json:"pull,omitempty"`    // see [PullMissing]; empty: missing
	Resources  Resources         `json:"resources,omitzero"`
	Health     *HealthCheck      `json:"health,omitempty"` // nil: the image's, if it has one
	// StopTimeoutS is how many seconds a container has to end after SIGTERM before
	// it is killed; 0: 10.
	StopTimeoutS int `json:"stop_timeout_s,omitempty"`
}

// Values of [Service].Restart. The agent restarts containers itself, with pauses
// that grow from 1 s to 5 min while one keeps ending.
const (
	RestartNo        = "no"
	RestartOnFailure = "on-failure" // if it ended with another exit code than 0
	RestartAlways    = "always"
	// RestartUnlessStopped is the same as [RestartAlways]: what is to be stopped is
	// taken out of the desired state.
	RestartUnlessStopped = "unless-stopped"
)

// Values of [Service].Pull.
const (
	PullMissing = "missing" // where the device does not have the image
	PullAlways  = "always"  // before each new container, and with each new revision
	PullNever   = "never"
)

// Resources bound a container; zero means no bound.
type Resources struct {
	MemoryBytes int64   `json:"memory_bytes,omitempty"` // at least 6 MiB
	CPUs        float64 `json:"cpus,omitempty"`         // 0.5 is half of one
}

// HealthCheck is a command that the engine runs in the container; its result is
// reported in [ServiceStatus].Health. Podman needs systemd on the device for it.
type HealthCheck struct {
	Command      []string `json:"command"`
	IntervalS    int      `json:"interval_s,omitempty"`     // seconds between two runs; 0: 30
	TimeoutS     int      `json:"timeout_s,omitempty"`      // seconds that one may take; 0: 30
	Retries      int      `json:"retries,omitempty"`        // failures in a row that mean unhealthy; 0: 3
	StartPeriodS int      `json:"start_period_s,omitempty"` // seconds in which failures do not count
}

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

// PodmanV0 is a set of containers.
type PodmanV0 struct {
	Services []Service `json:"services"`
}

// Service is one container.
type Service struct {
	Name      string            `json:"name"`
	Image     string            `json:"image"`
	Command   []string          `json:"command,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	Ports     []string          `json:"ports,omitempty"`   // "host:container", "8080:80", "127.0.0.1:53:53/udp"
	Volumes   []string          `json:"volumes,omitempty"` // "source:target[:ro]"
	Restart   string            `json:"restart,omitempty"` // no, on-failure, always, unless-stopped
	Resources Resources         `json:"resources,omitzero"`
}

// Resources bound a container; zero means no bound.
type Resources struct {
	MemoryBytes int64   `json:"memory_bytes,omitempty"`
	CPUs        float64 `json:"cpus,omitempty"`
}

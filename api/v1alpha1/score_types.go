package v1alpha1

import "encoding/json"

// Score is what runs on a device: a type, and data that the type defines. An agent
// rejects a type that it does not know.
//
// +kubebuilder:validation:XValidation:rule="self.type != 'PodmanV0' || (has(self.data.services) && self.data.services.size() > 0)",message="data.services: there must be at least one"
type Score struct {
	// Type is PodmanV0, or one that only newer agents know.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[A-Za-z][A-Za-z0-9]*$`
	Type string `json:"type"`
	// Data is that of the type.
	//
	// +kubebuilder:pruning:PreserveUnknownFields
	Data ScoreData `json:"data"`
}

// ScoreData is the data of a score. Its fields are those of PodmanV0; for other
// types everything is kept as it was written.
//
// Its JSON is read and written in score_json.go.
//
// +kubebuilder:object:generate=true
type ScoreData struct {
	// Services are the containers of PodmanV0, started in this order and removed in
	// reverse.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=name
	Services []Service `json:"services,omitempty"`

	// raw is the object as it was read, with the fields that this version does not
	// know; nil where the value was made in Go.
	raw json.RawMessage `json:"-"`
}

// Service is one container, as the agent's document has it; docs/agent.md explains
// the fields. The agent, and the operator before it, check what the schema here does
// not.
type Service struct {
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image"`
	// +optional
	// +kubebuilder:validation:MaxItems=1024
	Command []string `json:"command,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxItems=1024
	Entrypoint []string `json:"entrypoint,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxProperties=1024
	Env map[string]string `json:"env,omitempty"`
	// +optional
	// +kubebuilder:validation:Pattern=`^/`
	Workdir string `json:"workdir,omitempty"`
	// +optional
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$`
	User string `json:"user,omitempty"`
	// Ports are "[ip:]host:container[/protocol]".
	//
	// +optional
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:Pattern=`^(([0-9.]+|\[[0-9a-fA-F:.]+\]):)?[0-9]{1,5}:[0-9]{1,5}(/(tcp|udp))?$`
	Ports []string `json:"ports,omitempty"`
	// Volumes are "source:target[:ro|:rw]".
	//
	// +optional
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:Pattern=`^[^:]+:/[^:]+(:(ro|rw))?$`
	Volumes []string `json:"volumes,omitempty"`
	// +optional
	// +kubebuilder:validation:Enum=no;on-failure;always;unless-stopped
	Restart string `json:"restart,omitempty"`
	// +optional
	// +kubebuilder:validation:Enum=missing;always;never
	Pull string `json:"pull,omitempty"`
	// +optional
	Resources *Resources `json:"resources,omitempty"`
	// +optional
	Health *HealthCheck `json:"health,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	StopTimeoutS int `json:"stop_timeout_s,omitempty"`
}

// Resources bound a container; 0 means no bound.
type Resources struct {
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == 0 || self >= 6291456",message="at least 6291456 (6 MiB), or 0 for no bound"
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// CPUs: 0.5 is half of one.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1024
	CPUs float64 `json:"cpus,omitempty"`
}

// HealthCheck is a command that the engine runs in the container.
type HealthCheck struct {
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1024
	Command []string `json:"command"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	IntervalS int `json:"interval_s,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	TimeoutS int `json:"timeout_s,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Retries int `json:"retries,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	StartPeriodS int `json:"start_period_s,omitempty"`
}

package local

import "time"

// States of a cluster.
const (
	StateDown     = "down"     // there is none
	StateStarting = "starting" // its supervisor lives, the node is not ready (yet)
	StateUp       = "up"       // node Ready, takes Pods
	StateKilled   = "killed"   // its supervisor was killed; Up and Down clear what is left
)

// Status is what is known of a cluster.
type Status struct {
	State      string            `json:"state"`
	Name       string            `json:"name"`
	Dir        string            `json:"dir"`
	Kubeconfig string            `json:"kubeconfig,omitempty"`   // path
	Node       string            `json:"node_address,omitempty"` // where the API server and NodePorts answer
	PID        int               `json:"pid,omitempty"`          // of the supervisor
	Started    time.Time         `json:"started,omitzero"`
	Version    string            `json:"version,omitempty"` // of Kubernetes, as the API server says
	Components []ComponentStatus `json:"components,omitempty"`
}

// ComponentStatus is the state of one process of the cluster.
type ComponentStatus struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"`      // in the node's process namespace; 0 while it does not run
	Restarts int    `json:"restarts"` // since the cluster was started
	LastExit string `json:"last_exit,omitempty"`
}

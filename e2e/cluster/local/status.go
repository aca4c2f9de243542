package local

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"
)

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

// status is what a supervisor writes down about itself.
type status struct {
	PID     int          `json:"pid"` // as the machine sees it
	Name    string       `json:"name"`
	Network netip.Prefix `json:"network"`
	Started time.Time    `json:"started"`
}

func statusPath(l layout) string     { return l.path("supervisor.json") }
func componentsPath(l layout) string { return l.path("components.json") }

func writeStatus(l layout, s status) error { return writeJSON(statusPath(l), s) }

func writeComponents(l layout, list []ComponentStatus) error {
	slices.SortFunc(list, func(a, b ComponentStatus) int { return cmp.Compare(a.Name, b.Name) })
	return writeJSON(componentsPath(l), list)
}

// readStatus returns fs.ErrNotExist where there is no status.
func readStatus(l layout) (s status, err error) {
	return s, readJSON(statusPath(l), &s)
}

// readComponents returns nil where none was ever started.
func readComponents(l layout) []ComponentStatus {
	var list []ComponentStatus
	_ = readJSON(componentsPath(l), &list) // nil says it
	return list
}

// writeJSON replaces the file at once: a reader sees the old content or the new.
func writeJSON(path string, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, content, 0o644); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func readJSON(path string, v any) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(content, v); err != nil {
		return fmt.Errorf("read state %s: %w", path, err)
	}
	return nil
}

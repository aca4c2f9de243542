package command

import "time"

// PingRequest is the payload of ping: nothing, or {}.
type PingRequest struct{}

// PingReply answers ping. The first three fields are the contract of protocol
// 1; the others were added later and may be absent.
type PingReply struct {
	DeviceID     string `json:"device_id"`
	AgentVersion string `json:"agent_version"`
	UptimeS      uint64 `json:"uptime_s"` // seconds since the agent started

	BootID          string       `json:"boot_id,omitempty"`          // of the machine's kernel
	Instance        string       `json:"instance,omitempty"`         // of this run of the agent
	Protocol        int          `json:"protocol,omitempty"`         //
	Runtime         RuntimeState `json:"runtime,omitempty"`          //
	Time            *time.Time   `json:"time,omitempty"`             // broker time as the agent knows it; absent until it does
	DesiredRevision uint64       `json:"desired_revision,omitempty"` // last desired state received
	MemoryRSSBytes  uint64       `json:"memory_rss_bytes,omitempty"` // resident memory of the agent
}

// RuntimeState says whether the device can run containers.
type RuntimeState string

// The runtime states.
const (
	RuntimeReady       RuntimeState = "ready"       // the engine answers
	RuntimeDisabled    RuntimeState = "disabled"    // runtime_enabled = false
	RuntimeUnavailable RuntimeState = "unavailable" // wanted, but the engine does not answer
)

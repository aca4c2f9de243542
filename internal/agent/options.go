package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/spool"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/version"
)

// Options configure an agent. DeviceID and NATS are needed; every other field's
// zero value is its default. Nothing may change after New.
type Options struct {
	// DeviceID is the id of the device; see command.CheckDeviceID.
	DeviceID string
	// Labels are reported in the status; selection of devices does not use them.
	Labels map[string]string
	// StateDir is where the agent keeps what must survive a restart; it is made if
	// missing, with mode 0700. Only one agent uses it at a time. Empty: everything
	// is kept in memory.
	StateDir string

	// NATS says where and how to connect. Name, InboxPrefix and Logger are set by
	// the agent, Retry is not used: the agent itself tries for ever.
	NATS natsconn.Config
	// OpsAccount is the name of the NATS account of people and their tools, the
	// only one that commands are taken from; default OPS.
	OpsAccount string

	// RuntimeEnabled asks for a container engine. Without it commands, desired
	// state, status and heartbeat work just the same.
	RuntimeEnabled bool
	// RuntimeSocket is where the engine listens, for example
	// unix:///run/podman/podman.sock; default [engine.DefaultSocket].
	RuntimeSocket string
	// Engine replaces the engine behind RuntimeSocket; the agent does not close it.
	Engine reconcile.Engine

	// Policy is what the device allows of logs, exec and shell.
	Policy workload.Policy

	// Handlers add verbs, or replace a handler; a nil one takes a verb away.
	Handlers map[command.Verb]Handler
	// MaxConcurrent is how many commands run at once, at most half of them (at least
	// one) of one caller; beyond it the answer is busy. Ping and result do not count.
	// Default 64.
	MaxConcurrent int
	// MaxRequests is how many request ids of verbs that change something are
	// remembered, at most a quarter of them (at least one) of one caller; beyond it
	// the answer is busy. Default 1024.
	MaxRequests int
	// MaxQueued is how many commands may wait for the agent; beyond it they are
	// dropped, and counted. Default 8192.
	MaxQueued int
	// AuditMaxBytes bounds the audit records that the broker does not have yet;
	// default 16 MiB, 1 MiB without a StateDir.
	AuditMaxBytes int64

	// HeartbeatInterval is the time between heartbeats, before a jitter of 10 %;
	// default command.HeartbeatInterval.
	HeartbeatInterval time.Duration
	// AuditDelay is how long audit records are gathered before they are published;
	// default 300 ms.
	AuditDelay time.Duration
	// ResyncInterval is how often broker time and desired state are read again
	// without a cause, and the status is published again, before jitter; default
	// 10 min.
	ResyncInterval time.Duration
	// RenewInterval, if set, renews the connection so often, even if it would live
	// longer. Default: only before its end.
	RenewInterval time.Duration
	// RenewOverlap is how long both connections of a renewal take commands, so that
	// the news of the second reaches all servers of a cluster before the first one
	// is withdrawn; default 500 ms.
	RenewOverlap time.Duration
	// DrainTimeout bounds how long a stop waits for commands that were accepted;
	// default 10 s.
	DrainTimeout time.Duration
	// RetryMin and RetryMax bound the jittered waits between attempts to connect, or
	// to find the engine; default 1 s and 30 s.
	RetryMin, RetryMax time.Duration
	// Reconcile tunes how containers are kept as desired. Device, Engine, Report,
	// CheckHealth, RetryMin, RetryMax, Settled and Logger are set by the agent.
	Reconcile reconcile.Options

	// Version is reported as agent_version; default: the module's.
	Version string
	// Protocol is the protocol number spoken; default command.Protocol. For tests
	// of compatibility.
	Protocol int
	// Now is the device's own clock. It is used only until broker time is known;
	// default time.Now.
	Now func() time.Time
	// Logger gets the agent's log; nil discards it.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	def(&o.OpsAccount, "OPS")
	def(&o.MaxConcurrent, 64)
	def(&o.MaxRequests, 1024)
	def(&o.MaxQueued, 8192)
	if o.StateDir == "" {
		def(&o.AuditMaxBytes, 1<<20)
	}
	def(&o.AuditMaxBytes, spool.DefaultMaxBytes)
	def(&o.HeartbeatInterval, command.HeartbeatInterval)
	def(&o.AuditDelay, 300*time.Millisecond)
	def(&o.ResyncInterval, 10*time.Minute)
	def(&o.RenewOverlap, 500*time.Millisecond)
	def(&o.DrainTimeout, 10*time.Second)
	def(&o.RetryMin, time.Second)
	def(&o.RetryMax, max(30*time.Second, o.RetryMin))
	def(&o.Protocol, command.Protocol)
	if o.Version == "" {
		o.Version = version.String()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Limits on labels, so that a status stays small.
const (
	maxLabels     = 64
	maxLabelBytes = 256 // key and value together
)

func (o *Options) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := command.CheckDeviceID(o.DeviceID); err != nil {
		fault("%w", err)
	}
	errs = append(errs, checkLabels(o.Labels), o.Policy.Validate())
	for verb := range o.Handlers {
		if !verb.Known() {
			fault("handler of verb %q: the protocol has no such verb", verb)
		}
	}
	for name, n := range map[string]int64{
		"MaxConcurrent": int64(o.MaxConcurrent), "MaxRequests": int64(o.MaxRequests), "MaxQueued": int64(o.MaxQueued),
		"AuditMaxBytes": o.AuditMaxBytes, "HeartbeatInterval": int64(o.HeartbeatInterval), "AuditDelay": int64(o.AuditDelay),
		"ResyncInterval": int64(o.ResyncInterval), "RenewInterval": int64(o.RenewInterval), "RenewOverlap": int64(o.RenewOverlap),
		"DrainTimeout": int64(o.DrainTimeout), "RetryMin": int64(o.RetryMin), "RetryMax": int64(o.RetryMax),
	} {
		if n < 0 {
			fault("%s is negative", name)
		}
	}
	return errors.Join(errs...)
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("labels: %d of them, more than %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		if k == "" {
			return errors.New("labels: one has an empty name")
		}
		if len(k)+len(v) > maxLabelBytes {
			return fmt.Errorf("labels: %.40q has more than %d bytes", k, maxLabelBytes)
		}
	}
	return nil
}

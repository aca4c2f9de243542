package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/tomlconfig"
)

// DefaultStateDir is where the program keeps its state where its configuration
// names no other place.
const DefaultStateDir = "/var/lib/fleet-agent"

// Config is the configuration file of fleet-agent, in TOML. docs/agent.md
// describes every key. It is strict: an unknown key is an error.
type Config struct {
	Agent struct {
		DeviceID       string            `toml:"device_id"`
		RuntimeEnabled *bool             `toml:"runtime_enabled"` // default true
		Labels         map[string]string `toml:"labels"`
		StateDir       *string           `toml:"state_dir"`       // default DefaultStateDir; empty: in memory
		MaxConcurrent  int               `toml:"max_concurrent"`  // default 64
		AuditMaxBytes  int64             `toml:"audit_max_bytes"` // default 16 MiB
		StopTimeout    Duration          `toml:"stop_timeout"`    // default 10s
	} `toml:"agent"`
	NATS struct {
		URL      URLs         `toml:"url"` // default nats://127.0.0.1:4222
		Insecure bool         `toml:"insecure"`
		TLS      natsconn.TLS `toml:"tls"`
		RetryMin Duration     `toml:"retry_min"` // default 1s
		RetryMax Duration     `toml:"retry_max"` // default 30s
	} `toml:"nats"`
	Accounts struct {
		Ops string `toml:"ops"` // default OPS
	} `toml:"accounts"`
	Credentials credentials.Config `toml:"credentials"`
	Runtime     struct {
		Socket string `toml:"socket"` // default engine.DefaultSocket
	} `toml:"runtime"`
	Exec struct {
		Host bool   `toml:"host"` // default false: only in containers
		User string `toml:"user"` // whom programs on the host run as; needed with host
	} `toml:"exec"`
	Policy struct {
		Verbs                []command.Verb `toml:"verbs"`                   // of logs, exec and shell; default: all
		Containers           []string       `toml:"containers"`              // default: all
		Volumes              []string       `toml:"volumes"`                 // of directories of the device; default: all
		Callers              []string       `toml:"callers"`                 // default: all
		MaxSessions          int            `toml:"max_sessions"`            // default 128
		MaxSessionsPerCaller int            `toml:"max_sessions_per_caller"` // default 32
		MaxDuration          Duration       `toml:"max_duration"`            // of exec and shell; default: none
		IdleTimeout          Duration       `toml:"idle_timeout"`            // of shell; default: none
	} `toml:"policy"`
	Log struct {
		Level  string `toml:"level"`  // debug, info (default), warn or error
		Format string `toml:"format"` // text (default) or json
	} `toml:"log"`
}

// Duration and URLs are how a configuration writes them; see package tomlconfig.
type (
	Duration = tomlconfig.Duration
	URLs     = tomlconfig.URLs
)

// LoadConfig reads and checks a configuration file.
func LoadConfig(file string) (Config, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("agent configuration: %w", err)
	}
	c, err := ParseConfig(raw)
	if err != nil {
		return Config{}, fmt.Errorf("agent configuration %s: %w", file, err)
	}
	return c, nil
}

// ParseConfig reads and checks a configuration. An unknown key is an error that
// names the key and its line; other faults name the key.
func ParseConfig(raw []byte) (Config, error) {
	c, err := tomlconfig.Decode[Config](raw)
	if err != nil {
		return Config{}, err
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Validate names every key that is wrong, all in one error. It reads no file.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if c.Agent.DeviceID == "" {
		bad("agent.device_id", "missing: give the id of this device, for example \"vm-device-00\"")
	} else if err := command.CheckDeviceID(c.Agent.DeviceID); err != nil {
		bad("agent.device_id", "%v", err)
	}
	if err := checkLabels(c.Agent.Labels); err != nil {
		bad("agent.labels", "%v", err)
	}
	if n := c.Agent.MaxConcurrent; n < 0 || n > 1<<16 {
		bad("agent.max_concurrent", "%d is not between 1 and %d", n, 1<<16)
	}
	if n := c.Agent.AuditMaxBytes; n != 0 && (n < minAuditBytes || n > maxAuditBytes) {
		bad("agent.audit_max_bytes", "%d is not between %d and %d", n, minAuditBytes, maxAuditBytes)
	}
	if c.Agent.StopTimeout < 0 {
		bad("agent.stop_timeout", "is negative")
	}
	for _, u := range c.NATS.URL {
		if _, err := natsconn.CheckURL(u, c.NATS.TLS.CA != "", true, c.NATS.Insecure); err != nil {
			bad("nats.url", "%v", err)
		}
	}
	if (c.NATS.TLS.Cert == "") != (c.NATS.TLS.Key == "") {
		bad("nats.tls", "cert and key go together")
	}
	if lo, hi := c.NATS.RetryMin, c.NATS.RetryMax; lo < 0 || hi < 0 || hi != 0 && hi < lo {
		bad("nats.retry_max", "retry_min %v and retry_max %v: want 0 < retry_min <= retry_max", time.Duration(lo), time.Duration(hi))
	}
	if strings.ContainsAny(c.Accounts.Ops, ".*> \t\r\n") {
		bad("accounts.ops", "%q is not the name of an account", c.Accounts.Ops)
	}
	if err := c.Credentials.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.policy().Validate(); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains([]string{"", "debug", "info", "warn", "error"}, c.Log.Level) {
		bad("log.level", "%q is not debug, info, warn or error", c.Log.Level)
	}
	if !slices.Contains([]string{"", "text", "json"}, c.Log.Format) {
		bad("log.format", "%q is not text or json", c.Log.Format)
	}
	return errors.Join(errs...)
}

// Bounds of agent.audit_max_bytes: enough for a handful of records, and no more
// than a small device's disk bears.
const (
	minAuditBytes = 64 << 10
	maxAuditBytes = 1 << 30
)

func (c Config) policy() workload.Policy {
	p := c.Policy
	return workload.Policy{
		Verbs: p.Verbs, Containers: p.Containers, Volumes: p.Volumes, Callers: p.Callers, Host: c.Exec.Host, HostUser: c.Exec.User,
		MaxSessions: p.MaxSessions, MaxSessionsPerCaller: p.MaxSessionsPerCaller,
		MaxDuration: time.Duration(p.MaxDuration), IdleTimeout: time.Duration(p.IdleTimeout),
	}
}

// Options are those of the agent that c describes, with log as its logger.
func (c Config) Options(log *slog.Logger) (Options, error) {
	c.Credentials.Logger = log
	source, err := credentials.New(c.Credentials)
	if err != nil {
		return Options{}, err
	}
	o := Options{
		DeviceID: c.Agent.DeviceID, Labels: c.Agent.Labels, StateDir: DefaultStateDir,
		NATS: natsconn.Config{
			URLs: c.NATS.URL, TLS: c.NATS.TLS, Insecure: c.NATS.Insecure, Credentials: source,
		},
		OpsAccount:     c.Accounts.Ops,
		RuntimeEnabled: c.Agent.RuntimeEnabled == nil || *c.Agent.RuntimeEnabled,
		RuntimeSocket:  c.Runtime.Socket,
		MaxConcurrent:  c.Agent.MaxConcurrent,
		AuditMaxBytes:  c.Agent.AuditMaxBytes,
		Policy:         c.policy(),
		DrainTimeout:   time.Duration(c.Agent.StopTimeout),
		RetryMin:       time.Duration(c.NATS.RetryMin),
		RetryMax:       time.Duration(c.NATS.RetryMax),
		Logger:         log,
	}
	if c.Agent.StateDir != nil {
		o.StateDir = *c.Agent.StateDir
	}
	if lo, hi := o.RetryMin, o.RetryMax; lo > 0 && hi > 0 {
		// A connection that was lost comes back with the same haste.
		o.NATS.Options = append(o.NATS.Options, nats.ReconnectWait(lo), nats.ReconnectJitter(hi-lo, hi-lo))
	}
	return o, nil
}

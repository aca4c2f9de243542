package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// reporter publishes status and heartbeats. Only the agent's loop uses it.
type reporter struct {
	agent     *Agent
	published []byte    // last status, without its time
	at        time.Time // when that was published; monotonic
	beats     uint64
}

// old tells whether the last status is to be published again though nothing
// changed. Nobody confirms a status: a broker whose streams are not there yet
// stores it nowhere.
func (r *reporter) old() bool { return time.Since(r.at) >= r.agent.opts.ResyncInterval/2 }

// status publishes the status where it changed since the last time, or always
// if force is set: after a connect the broker may not have the last one.
func (r *reporter) status(l *link, force bool) {
	a := r.agent
	s := command.Status{
		Schema: command.Schema, DeviceID: a.opts.DeviceID, AgentVersion: a.opts.Version, Protocol: a.opts.Protocol,
		BootID: a.bootID, Instance: a.instance, StartedAt: a.startedAt(), Labels: a.opts.Labels,
	}
	a.state.fill(&s)
	bare, err := encodeStatus(&s)
	if err != nil {
		a.log.Error("status", "error", err)
		return
	}
	if !force && string(bare) == string(r.published) {
		return
	}
	s.Time = a.now().UTC()
	data, err := json.Marshal(s)
	if err == nil {
		err = l.nc.Publish(command.StatusSubject(a.opts.DeviceID), data)
	}
	if err != nil {
		a.log.Debug("status not published; the next connect publishes it", "error", err)
		return
	}
	r.published, r.at = bare, time.Now()
}

// encodeStatus marshals the status, leaving out deployments until it is small
// enough to be stored.
func encodeStatus(s *command.Status) ([]byte, error) {
	const room = 4 << 10 // for the time and the condition
	bare, err := json.Marshal(s)
	if err != nil || len(bare) <= command.MaxDocument-room {
		return bare, err
	}
	names := slices.Sorted(maps.Keys(s.Deployments))
	size := len(bare)
	left := len(names)
	for left > 0 && size > command.MaxDocument-room {
		left--
		one, err := json.Marshal(map[string]command.DeploymentStatus{names[left]: s.Deployments[names[left]]})
		if err != nil {
			return nil, err
		}
		size -= len(one) - 1 // without its braces, with a comma
		delete(s.Deployments, names[left])
	}
	s.Conditions = append(s.Conditions, command.Condition{
		Type: command.ConditionStatusTruncated, Status: true, Reason: "TooLarge",
		Message: fmt.Sprintf("%d of %d deployments are left out of this status", len(names)-left, len(names)),
	})
	return json.Marshal(s)
}

// heartbeat publishes one heartbeat.
func (r *reporter) heartbeat(l *link) {
	a := r.agent
	h := command.Heartbeat{
		Schema: command.Schema, DeviceID: a.opts.DeviceID, BootID: a.bootID, Instance: a.instance,
		Seq: r.beats + 1, Time: a.now().UTC(), UptimeS: a.uptimeSeconds(),
		SubscribedForMS: time.Since(l.subscribedAt()).Milliseconds(),
		DesiredRevision: a.state.desiredRevision(), MemoryRSSBytes: residentBytes(),
		Metrics: map[string]float64{
			"commands_served_total":  float64(a.server.served.Load()),
			"commands_refused_total": float64(a.server.refused.Load()),
			"commands_dropped_total": float64(a.dropped.Load() + l.droppedCommands()),
			"audit_records_pending":  float64(a.audit.spool.Pending()),
			"connects_total":         float64(a.connects.Load()),
		},
	}
	data, err := json.Marshal(h)
	if err == nil {
		err = l.nc.Publish(command.HeartbeatSubject(a.opts.DeviceID), data)
	}
	if err != nil {
		a.log.Debug("heartbeat not published", "error", err)
		return
	}
	r.beats++
}

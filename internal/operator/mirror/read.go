package mirror

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
)

// Limits of what is kept of a status: a device makes it, and there are many.
const (
	maxMessage    = 512 // bytes of an error or message
	maxWord       = 64  // bytes of a version, id or phase
	maxLabels     = 64
	maxLabelText  = 256  // bytes of a name or a value
	maxServices   = 1024 // of all deployments together
	maxConditions = 16
)

// readStatus reads a status and keeps what the controllers use.
func readStatus(device string, data []byte) (command.Status, error) {
	full, err := command.DecodeDocument[command.Status](data)
	if err != nil {
		return command.Status{}, err
	}
	if full.DeviceID != device {
		return command.Status{}, fmt.Errorf("it calls the device %.80q", full.DeviceID)
	}
	s := command.Status{
		Schema: full.Schema, DeviceID: device, AgentVersion: word(full.AgentVersion), Protocol: full.Protocol,
		BootID: cut(full.BootID, maxWord), Instance: cut(full.Instance, maxWord), StartedAt: full.StartedAt,
		Runtime: command.RuntimeState(word(string(full.Runtime))), DesiredRevision: full.DesiredRevision,
	}
	for _, name := range slices.Sorted(maps.Keys(full.Labels)) {
		if len(s.Labels) < maxLabels && len(name) <= maxLabelText {
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[shared(name)] = shared(cut(full.Labels[name], maxLabelText))
		}
	}
	services := 0
	for _, name := range slices.Sorted(maps.Keys(full.Deployments)) {
		if command.CheckDeploymentName(name) != nil || len(s.Deployments) >= command.MaxDeployments {
			continue
		}
		if s.Deployments == nil {
			s.Deployments = map[string]command.DeploymentStatus{}
		}
		d := full.Deployments[name]
		kept := command.DeploymentStatus{Phase: phase(d.Phase), Revision: d.Revision}
		if d.Error != nil {
			kept.Error = &command.ErrorDetail{Kind: command.Kind(word(string(d.Error.Kind))), Message: cut(d.Error.Message, maxMessage)}
		}
		for _, service := range slices.Sorted(maps.Keys(d.Services)) {
			if services >= maxServices || command.CheckDeploymentName(service) != nil {
				continue
			}
			services++
			if kept.Services == nil {
				kept.Services = map[string]command.ServiceStatus{}
			}
			v := d.Services[service]
			kept.Services[shared(service)] = command.ServiceStatus{Phase: phase(v.Phase), ExitCode: v.ExitCode, LastError: cut(v.LastError, maxMessage)}
		}
		s.Deployments[shared(name)] = kept
	}
	for i, c := range full.Conditions {
		if i >= maxConditions {
			break
		}
		s.Conditions = append(s.Conditions, command.Condition{
			Type: word(c.Type), Status: c.Status, Reason: word(c.Reason), Message: cut(c.Message, maxMessage), Since: c.Since.Round(time.Second),
		})
	}
	return s, nil
}

// readDocument reads a stored desired state. Its scores share their data with equal
// ones of other devices.
func (m *Mirror) readDocument(msg jetstream.Msg) (command.DesiredState, map[string]string, error) {
	state, err := command.DecodeDocument[command.DesiredState](msg.Data())
	if err != nil {
		return command.DesiredState{}, nil, err
	}
	owners, err := command.DecodeOwners(msg.Headers().Get(command.HeaderOwners))
	if err != nil {
		return command.DesiredState{}, nil, err
	}
	for name, score := range state.Deployments {
		state.Deployments[name] = m.scores.share(score)
	}
	return state, intern(owners), nil
}

// shared gives one copy of texts that many devices have.
func shared(s string) string { return unique.Make(s).Value() }

func word(s string) string { return shared(cut(s, maxWord)) }

func phase(p command.Phase) command.Phase { return command.Phase(word(string(p))) }

// intern shares the texts of a map.
func intern(of map[string]string) map[string]string {
	if of == nil {
		return nil
	}
	to := make(map[string]string, len(of))
	for k, v := range of {
		to[shared(k)] = shared(v)
	}
	return to
}

// cut shortens s to n bytes and makes it UTF-8, in memory of its own.
func cut(s string, n int) string {
	const ellipsis = "…"
	if len(s) > n {
		s = s[:n-len(ellipsis)] + ellipsis
	}
	return strings.Clone(strings.ToValidUTF8(s, ""))
}

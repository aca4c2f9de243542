package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

// state is what the status tells. Whoever changes it calls one of the setters,
// which wake the loop that publishes.
type state struct {
	now     func() time.Time
	changed chan struct{} // of capacity 1

	mu          sync.Mutex
	runtime     command.RuntimeState
	revision    uint64 // last desired state received
	reported    uint64 // revision that deployments speak of
	deployments map[string]command.DeploymentStatus
	conditions  map[string]command.Condition
}

func (s *state) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *state) runtimeState() command.RuntimeState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runtime
}

func (s *state) desiredRevision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

// setDesired takes a document that could be read. What a status tells of it
// changes at once: it never speaks of this revision and says Ready of another one.
func (s *state) setDesired(d reconcile.Desired) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision = d.Revision
	if s.runtime == command.RuntimeDisabled {
		s.reported, s.deployments = d.Revision, withoutEngine(d)
	}
	s.setConditionLocked(command.ConditionDesiredStateInvalid, false, "", "")
	s.judgeLocked()
	s.wake()
}

// withoutEngine is where deployments stand on an agent that runs no containers.
func withoutEngine(d reconcile.Desired) map[string]command.DeploymentStatus {
	services, rejected := d.State.Split()
	all := make(map[string]command.DeploymentStatus, len(services)+len(rejected))
	for name := range services {
		all[name] = command.DeploymentStatus{
			Revision: d.Revision, Phase: command.PhaseRuntimeUnavailable,
			Error: reconcile.Unavailable("this agent has no container engine: runtime_enabled = false"),
		}
	}
	for name, e := range rejected {
		all[name] = command.DeploymentStatus{
			Revision: d.Revision, Phase: command.PhaseRejected, Error: &command.ErrorDetail{Kind: e.Kind, Message: cut(e.Message, 512)},
		}
	}
	return all
}

// setReport takes what the reconciler tells.
func (s *state) setReport(r reconcile.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runtime, s.reported, s.deployments = r.Runtime, r.Revision, r.Deployments
	s.judgeLocked()
	s.wake()
}

// setKept notes whether the desired state could be kept.
func (s *state) setKept(err error) {
	if err != nil {
		s.setCondition(command.ConditionStateNotKept, true, "WriteFailed", err.Error())
		return
	}
	s.setCondition(command.ConditionStateNotKept, false, "", "")
}

// judgeLocked tells whether the device is as desired.
func (s *state) judgeLocked() {
	if s.revision == 0 {
		return
	}
	var not []string
	if s.reported != s.revision {
		not = append(not, fmt.Sprintf("revision %d is not taken up", s.revision))
	}
	for _, name := range slices.Sorted(maps.Keys(s.deployments)) {
		if phase := s.deployments[name].Phase; !phase.AsDesired() {
			not = append(not, cut(name, 80)+" is "+string(phase))
		}
	}
	if len(not) == 0 {
		s.setConditionLocked(command.ConditionReady, true, "AsDesired", "")
		return
	}
	s.setConditionLocked(command.ConditionReady, false, "NotAsDesired", strings.Join(not, ", "))
}

// setUnreadable notes that a revision was received and could not be read. What
// was desired before stays.
func (s *state) setUnreadable(revision uint64, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision = revision
	s.setConditionLocked(command.ConditionDesiredStateInvalid, true, "NotReadable", reason)
	s.judgeLocked()
	s.wake()
}

// setCondition tells whether the status of the condition changed. One that was
// never true is not kept, except Ready.
func (s *state) setCondition(kind string, status bool, reason, message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.setConditionLocked(kind, status, reason, message)
}

func (s *state) setConditionLocked(kind string, status bool, reason, message string) bool {
	old, known := s.conditions[kind]
	if !known && !status && kind != command.ConditionReady {
		return false
	}
	news := !known || old.Status != status
	message = cut(message, 512)
	if !news && old.Reason == reason && old.Message == message {
		return false
	}
	c := command.Condition{Type: kind, Status: status, Reason: reason, Message: message, Since: old.Since}
	if news {
		c.Since = s.now().UTC()
	}
	if s.conditions == nil {
		s.conditions = make(map[string]command.Condition)
	}
	s.conditions[kind] = c
	s.wake()
	return news
}

func (s *state) conditionHolds(kind string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conditions[kind].Status
}

// fill copies what changes into a status.
func (s *state) fill(status *command.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status.Runtime = s.runtime
	status.DesiredRevision = s.revision
	status.Deployments = maps.Clone(s.deployments)
	status.Conditions = slices.SortedFunc(maps.Values(s.conditions), func(a, b command.Condition) int {
		return strings.Compare(a.Type, b.Type)
	})
}

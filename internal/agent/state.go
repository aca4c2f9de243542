package agent

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// state is what the status tells. Whoever changes it calls one of the setters,
// which wake the loop that publishes.
type state struct {
	now     func() time.Time
	changed chan struct{} // of capacity 1

	mu          sync.Mutex
	runtime     command.RuntimeState
	revision    uint64 // last desired state received
	desired     *desiredDocument
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

// setRuntime tells whether it is news.
func (s *state) setRuntime(r command.RuntimeState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runtime == r {
		return false
	}
	s.runtime = r
	s.evaluate()
	s.wake()
	return true
}

// setDesired takes a document that could be read.
func (s *state) setDesired(doc desiredDocument) {
	s.mu.Lock()
	s.revision = doc.revision
	s.desired = &doc
	s.evaluate()
	s.mu.Unlock()
	s.setCondition(command.ConditionDesiredStateInvalid, false, "", "")
	s.wake()
}

// setUnreadable notes that a revision was received and could not be read. What
// was desired before stays.
func (s *state) setUnreadable(revision uint64, reason string) {
	s.mu.Lock()
	s.revision = revision
	s.mu.Unlock()
	s.setCondition(command.ConditionDesiredStateInvalid, true, "NotReadable", reason)
	s.wake()
}

// evaluate is one step of a reconciler that runs no containers yet.
func (s *state) evaluate() {
	if s.desired == nil {
		return
	}
	s.deployments = make(map[string]command.DeploymentStatus, len(s.desired.deployments))
	for name, score := range s.desired.deployments {
		s.deployments[name] = scoreStatus(score, s.desired.revision, s.runtime)
	}
}

// setCondition tells whether the status of the condition changed. One that was
// never true is not kept.
func (s *state) setCondition(kind string, status bool, reason, message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.conditions[kind]
	if !known && !status {
		return false
	}
	news := !known || old.Status != status
	if !news && old.Reason == reason && old.Message == message {
		return false
	}
	c := command.Condition{Type: kind, Status: status, Reason: reason, Message: cut(message, 512), Since: old.Since}
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

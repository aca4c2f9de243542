package workload

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// Options configure the handlers. DeviceID, Sessions and Record are needed.
type Options struct {
	DeviceID string
	Engine   *engine.Engine // nil: the device runs no containers
	Sessions *session.Manager
	Policy   Policy // valid
	// Record keeps an audit record; the auditor fills in what is of the device.
	Record func(*command.AuditRecord)
	Log    *slog.Logger // nil discards
}

// Server serves logs, exec and shell.
type Server struct {
	o   Options
	log *slog.Logger
	// containment is told, once, how programs on the host are held together.
	containment sync.Once
}

// New makes the handlers.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, log: o.Log}
}

// Call is a command that was accepted.
type Call struct {
	Verb    command.Verb
	Caller  command.AuditCaller // as the broker verified it
	Header  command.RequestHeader
	Payload []byte
	// StillValid fails where the deadline has passed; it is asked right before the
	// side effect.
	StillValid func() error
	// Remaining is the time until the deadline.
	Remaining func() time.Duration
	// Now is broker time.
	Now func() time.Time
	// Ended is told how the program of a session ended, before the caller is: with
	// its exit code, if that is known, and a failure, if it did not end by itself.
	Ended func(exitCode *int, failure *command.Error)
}

// locate finds the container that the caller means and is allowed to. Without a
// name it is the device's only one.
func (s *Server) locate(ctx context.Context, verb command.Verb, name string) (engine.Container, error) {
	if s.o.Engine == nil {
		return engine.Container{}, command.NewError(command.KindRuntimeUnavailable, "this device runs no containers: its agent has no container engine")
	}
	all, err := s.o.Engine.Containers(ctx, s.o.DeviceID)
	if err != nil {
		s.log.Error("the container engine cannot be asked", "error", err)
		return engine.Container{}, command.NewError(command.KindRuntimeUnavailable, "the container engine of this device does not answer")
	}
	found := engine.Find(all, name)
	if name == "" {
		if found = onlyOne(all); len(found) != 1 {
			return engine.Container{}, command.NewError(command.KindBadRequest, "%s: say which container of this device; it has %s", verb, s.names(verb, all))
		}
	}
	switch len(found) {
	case 1:
		return found[0], s.o.Policy.container(verb, found[0].Labels.Deployment, found[0].Labels.Service)
	case 0:
		return engine.Container{}, command.NewError(command.KindNotFound, "no container %.200q on this device; it has %s", name, s.names(verb, all))
	}
	return engine.Container{}, command.NewError(command.KindBadRequest, "%.200q is not unique on this device: say one of %s", name, s.names(verb, found))
}

// onlyOne is the container of the one service that there is.
func onlyOne(all []engine.Container) []engine.Container {
	for _, c := range all {
		if nameOf(c) != nameOf(all[0]) {
			return nil
		}
	}
	if len(all) == 0 {
		return nil
	}
	return engine.Find(all, nameOf(all[0]))
}

// names lists containers for a message, those that the policy shows.
func (s *Server) names(verb command.Verb, all []engine.Container) string {
	var names []string
	for _, w := range all {
		if s.o.Policy.container(verb, w.Labels.Deployment, w.Labels.Service) == nil && !slices.Contains(names, nameOf(w)) {
			names = append(names, nameOf(w))
		}
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	const most = 20
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// open takes a session in.
func (s *Server) open(c Call, named *command.Session, bounds session.Open) (*session.Session, error) {
	if named == nil {
		return nil, command.NewError(command.KindBadRequest, "%s needs a session", c.Verb)
	}
	bounds.UID, bounds.RequestID, bounds.Session = c.Caller.UID, c.Header.RequestID, *named
	return s.o.Sessions.Open(bounds)
}

// ended records how a session ended.
func (s *Server) ended(c Call, sess *session.Session, arrived time.Time) func(session.Ended) {
	digest := command.PayloadDigest(c.Payload)
	return func(e session.Ended) {
		rec := &command.AuditRecord{
			Time: arrived, Verb: c.Verb, Event: command.AuditEnd, Caller: c.Caller, RequestID: c.Header.RequestID,
			Session: command.SessionDigest(sess.ID()), PayloadSHA256: digest, Outcome: command.OutcomeOK,
			DurationUS: e.Duration.Microseconds(), ExitCode: e.ExitCode, Bytes: &e.Bytes,
		}
		if e.Err != nil {
			rec.Outcome, rec.Kind, rec.Reason = e.Err.Outcome, e.Err.Kind, e.Err.Message
		} else if e.Reason != command.EndEOF {
			rec.Reason = string(e.Reason)
		}
		s.o.Record(rec)
		if c.Ended != nil {
			c.Ended(e.ExitCode, e.Err)
		}
		s.log.Debug("a session ended", "verb", c.Verb, "caller", c.Caller.User, "session", rec.Session, "reason", e.Reason,
			"outcome", rec.Outcome, "stdout", e.Bytes.Stdout, "stderr", e.Bytes.Stderr, "duration", e.Duration)
	}
}

// nameOf is the container's name that is unique on the device.
func nameOf(w engine.Container) string { return w.Labels.Deployment + "/" + w.Labels.Service }

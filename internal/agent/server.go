package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/brokertime"
)

// server answers commands. It does not know connections beyond the message that
// came in on one.
type server struct {
	device   string
	instance string
	protocol int
	// earlier tells whether instance was an earlier run of this same agent.
	earlier func(instance string) bool
	clock   *brokertime.Clock
	// now is broker time or, until it is known, the device's.
	now       func() (now time.Time, broker bool)
	log       *slog.Logger
	guard     guard
	overlap   overlap
	strangers sample // refusals of senders that cannot be named
	crowd     crowd
	pressing  sample // refusals of callers that fill the queue
	maxQueued int
	table     table
	audit     *auditor
	handlers  map[command.Verb]Handler
	sessions  *session.Manager
	jobs      jobResults
	slots     slots
	// clash is told of a command for another agent with this device id.
	clash func(instance string)

	served, refused atomic.Uint64
}

// call is one command on its way.
type call struct {
	msg     *nats.Msg
	link    *link
	start   time.Time // monotonic
	arrived time.Time // broker time, or the device's where that is not known
	timed   bool      // arrived is broker time
	target  command.Target
	caller  command.AuditCaller
	header  command.RequestHeader
	digest  string
	entry   *entry // nil where the request has no id
	handler Handler
	ran     bool
}

// handle is the callback of a connection's command subscription.
func (s *server) handle(l *link, msg *nats.Msg) {
	if !s.overlap.first(msg.Reply) {
		return
	}
	// The clock is read once for what changes nothing: it is a system call.
	c := &call{msg: msg, link: l, start: time.Now()}
	c.arrived, c.timed = s.now()
	defer func() {
		if p := recover(); p != nil {
			s.finish(c, s.panicked(c, p))
		}
	}()
	target, refused := s.authenticate(c)
	if refused != nil {
		s.finish(c, refused)
		return
	}
	if target.Verb == "" {
		// Control of a session has no reply.
		if err := s.sessions.Control(c.caller.UID, target, msg.Header, msg.Data); err != nil {
			s.log.Debug("control of a session was dropped", "caller", c.caller.User, "op", target.Op, "error", err)
		}
		return
	}
	if waiting := l.waiting(); s.crowd.presses(c.caller.UID, c.start, waiting, s.maxQueued) {
		a := refuseWith(command.KindBusy, "%d commands wait for this device, most of them this caller's; send fewer at a time", waiting)
		a.sampled = &s.pressing
		s.finish(c, a)
		return
	}
	if refused := s.accept(c); refused != nil {
		s.finish(c, refused)
		return
	}
	if _, ok := c.handler.(inline); ok {
		s.finish(c, s.run(l.handling, c))
		return
	}
	if busy := s.slots.take(c.caller.UID); busy != nil {
		s.finish(c, s.withdraw(c, busy))
		return
	}
	l.inflight.Go(func() {
		defer s.slots.free(c.caller.UID)
		s.finish(c, s.run(l.handling, c))
	})
}

// authenticate is the identity guard: who asked, whether this device was meant,
// and whether an answer can do harm.
func (s *server) authenticate(c *call) (command.Target, *answer) {
	deny := func(reason string) (command.Target, *answer) {
		a := refuseWith(command.KindDenied, "this device takes commands only from verified callers of the operators' account")
		a.reason = reason
		// Only a reply subject that the server made for an import is safe to publish
		// on; any other may be a stream's, or another device's.
		a.silent = !strings.HasPrefix(c.msg.Reply, importReply)
		return c.target, a
	}
	target, subjectErr := command.ParseSubject(c.msg.Subject)
	c.target = target
	if subjectErr != nil {
		// The subject stays out of log and audit: it may hold a session's id.
		c.target.Verb = malformedVerb
	}
	caller, refusal := s.guard.identify(c.msg.Header)
	c.caller = caller
	switch {
	case refusal != "":
		if subjectErr == nil {
			refusal = fmt.Sprintf("%s (verb %.64q)", refusal, target.Verb)
		}
		c.target.Verb = unverifiedVerb
		t, a := deny(refusal)
		a.sampled = &s.strangers
		return t, a
	case !strings.HasPrefix(c.msg.Subject, command.Subject(s.device, "")):
		return deny("the subject is another device's")
	case subjectErr == nil && target.Verb == "":
		return target, nil
	case c.msg.Reply == "":
		return deny("the command has no reply subject")
	case !strings.HasPrefix(c.msg.Reply, importReply):
		return deny("the reply subject was not made by the server for an import")
	case subjectErr != nil:
		return target, refuseWith(command.KindBadRequest, "the subject is neither %s<verb> nor that of a session", command.Subject(s.device, ""))
	}
	return target, nil
}

// malformedVerb stands in audit for the verb of a subject that does not parse.
const malformedVerb command.Verb = "malformed"

// accept checks everything that comes before a slot is taken. Afterwards the
// request id, if any, is in the table.
func (s *server) accept(c *call) *answer {
	verb := c.target.Verb
	changes := verb.Changes()
	header, err := command.ReadRequestHeader(c.msg.Header)
	if err != nil {
		return refuse(asCommandError(err))
	}
	c.header = header
	// Before anything that this agent could answer: the one that is meant may run
	// the command while this one says that it was refused.
	if changes && header.Instance != "" && header.Instance != s.instance {
		return s.otherInstance(c)
	}
	if err := command.CheckProtocol(s.protocol, header.Protocol); err != nil {
		return refuse(asCommandError(err))
	}
	if n := len(c.msg.Data); n > command.MaxDocument {
		return refuseWith(command.KindBadRequest, "the payload has %d bytes, more than the %d allowed", n, command.MaxDocument)
	}
	c.handler = s.handlers[verb]
	switch {
	case !verb.Known():
		return refuseWith(command.KindUnsupportedVerb, "this agent does not know the verb %.64q; it knows %v", verb, command.Verbs())
	case c.handler == nil:
		return refuseWith(command.KindUnsupportedVerb, "the verb %s is known, but this version of the agent does not serve it yet; update the agent", verb)
	}
	if changes {
		if missing := s.missing(c); missing != nil {
			return missing
		}
	}
	refused := s.checkDeadline(c, changes)
	if header.RequestID == "" {
		return refused
	}
	key := requestKey{c.caller.UID, header.RequestID}
	c.digest = command.PayloadDigest(c.msg.Data)
	if refused != nil {
		// One that ran is not told as expired because its caller repeats it too late.
		switch first, refusal := s.table.known(key, verb, c.digest); {
		case refusal != nil:
			return refuse(refusal)
		case first != nil:
			return &answer{reply: *first, replayed: true}
		}
		return refused
	}
	remember := header.Deadline
	if c.inJob() {
		if refused := s.checkJob(c); refused != nil {
			return refused
		}
		// Whoever goes on with the job asks again with this id, and a new deadline.
		remember = later(remember, command.JobTime(header.Job).Add(command.JobLifetime))
	}
	e, first, refusal := s.table.begin(key, verb, c.digest, c.arrived, remember)
	switch {
	case refusal != nil:
		return refuse(refusal)
	case first != nil:
		return &answer{reply: *first, replayed: true}
	}
	c.entry = e
	if c.inJob() {
		s.table.partOf(e, header.Job)
	}
	if changes && !s.audit.room() {
		return s.withdraw(c, command.NewError(command.KindBusy,
			"this device cannot record the command: its audit spool is full or cannot be written; try again when the broker has taken the records"))
	}
	return nil
}

// missing refuses a command that changes something and lacks what makes it safe.
func (s *server) missing(c *call) *answer {
	verb, header := c.target.Verb, c.header
	switch {
	case header.RequestID == "":
		return refuseWith(command.KindBadRequest, "%s needs a request id in the header %s", verb, command.HeaderRequestID)
	case header.Deadline.IsZero():
		return refuseWith(command.KindBadRequest, "%s needs a deadline in the header %s", verb, command.HeaderDeadline)
	case header.Instance == "":
		return refuseWith(command.KindBadRequest, "%s needs the agent's instance, from its last status, in the header %s", verb, command.HeaderInstance)
	}
	return nil
}

// otherInstance ends a command that is meant for another agent with this device
// id: silently, since that one answers. An earlier run of this same agent does
// not answer any more, so the caller is told.
func (s *server) otherInstance(c *call) *answer {
	if s.earlier(c.header.Instance) {
		return refuseWith(command.KindBadRequest, "the agent has restarted since the caller read its status; read the status again before repeating the command")
	}
	s.clash(c.header.Instance)
	a := refuseWith(command.KindBadRequest, "the command is for another agent with this device id")
	a.silent = true
	a.reason = "the command names another instance"
	return a
}

// checkDeadline refuses what is too late, or too far ahead to be kept in mind.
// Verbs that change nothing need no deadline, and no time to check it by.
func (s *server) checkDeadline(c *call, changes bool) *answer {
	if c.header.Deadline.IsZero() {
		return nil
	}
	now, known := c.arrived, c.timed
	switch {
	case !known && changes:
		return refuseWith(command.KindBusy, "this device does not know the time yet; try again")
	case !known:
		return nil
	case !now.Before(c.header.Deadline):
		return refuse(s.expired(c, now))
	case c.header.Deadline.Sub(now) > command.MaxDeadline:
		return refuseWith(command.KindBadRequest, "the deadline is %v ahead, more than the %v allowed",
			c.header.Deadline.Sub(now).Round(time.Second), command.MaxDeadline)
	}
	return nil
}

func (s *server) expired(c *call, now time.Time) *command.Error {
	return command.NewError(command.KindExpired, "the deadline passed %v before the device could start; nothing ran",
		now.Sub(c.header.Deadline).Round(time.Microsecond))
}

// stillValid is [Request.StillValid].
func (s *server) stillValid(c *call) error {
	if c.header.Deadline.IsZero() {
		return nil
	}
	now, known := s.clock.Latest()
	switch {
	case !known: // only where the verb changes nothing
		return nil
	case !now.Before(c.header.Deadline):
		return s.expired(c, now)
	}
	return nil
}

// withdraw ends a command that did not run, so that its request id can be used
// again.
func (s *server) withdraw(c *call, e *command.Error) *answer {
	if c.entry != nil {
		s.table.forget(c.entry)
		c.entry = nil
	}
	return refuse(e)
}

// run calls the handler.
func (s *server) run(ctx context.Context, c *call) (a *answer) {
	defer func() {
		if p := recover(); p != nil {
			a = s.panicked(c, p)
		}
	}()
	req := &Request{
		Verb: c.target.Verb, Caller: c.caller, Header: c.header, Payload: c.msg.Data, Arrived: c.arrived, Timed: c.timed,
		stillValid: func() error { return s.stillValid(c) },
	}
	if c.target.Verb.Changes() {
		if refused := s.begin(c, req); refused != nil {
			return refused
		}
	}
	c.ran = true
	result, err := c.handler.Handle(ctx, req)
	if err != nil {
		a := s.failed(c, err)
		if c.inJob() && (a.err.Kind == command.KindBusy || a.err.Kind == command.KindExpired) {
			return s.withdraw(c, a.err) // nothing ran, and the job may ask again
		}
		return a
	}
	data, err := json.Marshal(result)
	switch {
	case err != nil:
		return s.failed(c, fmt.Errorf("encode the reply: %w", err))
	case len(data) > command.MaxDocument:
		return s.failed(c, fmt.Errorf("the reply has %d bytes, more than the %d allowed", len(data), command.MaxDocument))
	}
	a = &answer{reply: reply{data: data}}
	switch result := result.(type) {
	case command.SessionReply:
		a.session, a.opened = true, result.Session
	case command.ExecReply:
		a.exitCode = &result.ExitCode
		a.wrote = &command.SessionBytes{Stdout: int64(len(result.Stdout)), Stderr: int64(len(result.Stderr))}
	}
	return a
}

// begin is what comes right before a handler that changes something: the request
// is on disk, and its deadline has not passed.
func (s *server) begin(c *call, req *Request) *answer {
	e := c.entry
	req.ended = func(exitCode *int, failure *command.Error) {
		s.journalFault(s.table.ended(e, exitCode, failure))
	}
	if err := req.StillValid(); err != nil {
		if c.inJob() {
			return s.withdraw(c, asCommandError(err))
		}
		return refuse(asCommandError(err))
	}
	if err := s.table.start(e, c.caller); err != nil {
		s.journalFault(err)
		return s.withdraw(c, command.NewError(command.KindBusy,
			"this device cannot note on its disk that the command starts; it did not run; see to the disk, and try again"))
	}
	if err := req.StillValid(); err != nil { // a slow disk
		if c.inJob() {
			return s.withdraw(c, asCommandError(err))
		}
		return refuse(asCommandError(err))
	}
	return nil
}

// journalFault logs that the journal could not be written.
func (s *server) journalFault(err error) {
	if err != nil {
		s.log.Error("the journal of requests could not be written; a restart of the agent may not know how a command ended", "error", err)
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// answer is how a command ends.
type answer struct {
	reply
	replayed bool
	silent   bool                  // no reply is sent
	sampled  *sample               // only some of its kind are recorded; nil: each is
	opened   string                // id of the session that was opened
	wrote    *command.SessionBytes // output of a program that was answered without a session
	reason   string                // for the audit record and the log; default: the error's message
}

func refuse(e *command.Error) *answer { return &answer{reply: reply{err: e}} }

func refuseWith(kind command.Kind, format string, args ...any) *answer {
	return refuse(command.NewError(kind, format, args...))
}

// failed answers a handler's error. The text of one that was not made for the
// caller stays in the log.
func (s *server) failed(c *call, err error) *answer {
	var e *command.Error
	if errors.As(err, &e) && e.Kind != "" {
		return refuse(e)
	}
	s.log.Error("a command failed", "verb", c.target.Verb, "request_id", c.header.RequestID, "error", err)
	return refuseWith(command.KindInternal, "the agent failed to serve %s; its log says why", c.target.Verb)
}

func (s *server) panicked(c *call, p any) *answer {
	s.log.Error("a handler panicked", "verb", c.target.Verb, "request_id", c.header.RequestID,
		"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return refuseWith(command.KindInternal, "the agent failed to serve %s; its log says why", c.target.Verb)
}

// finish keeps the answer for repetitions, records the command, and replies, in
// this order: who has the reply finds the rest done.
func (s *server) finish(c *call, a *answer) {
	if a.err != nil {
		e := *a.err // the table shares it between replies
		e.RequestID = c.header.RequestID
		a.err = &e
	}
	if c.entry != nil {
		s.journalFault(s.table.finish(c.entry, a.reply))
	}
	s.answeredJob(c, a)
	kept := a.sampled == nil || a.sampled.keep(a, c.start)
	if kept {
		s.record(c, a)
	}
	if a.err != nil {
		s.refused.Add(1)
	} else {
		s.served.Add(1)
	}
	if kept {
		s.logAnswer(c, a)
	}
	if a.silent {
		return
	}
	out := &nats.Msg{Data: a.data}
	if a.err != nil || a.replayed {
		out.Header = nats.Header{}
	}
	if a.err != nil {
		out.Data = command.EncodeError(out.Header, a.err)
	}
	if a.replayed {
		out.Header[command.HeaderReplayed] = []string{"true"}
	}
	// On the connection on which the command came: the right to reply is that
	// connection's.
	if err := c.msg.RespondMsg(out); err != nil {
		s.log.Warn("a reply could not be sent", "verb", c.target.Verb, "request_id", c.header.RequestID, "error", err)
	}
}

func (s *server) record(c *call, a *answer) {
	if c.digest == "" {
		c.digest = command.PayloadDigest(c.msg.Data)
	}
	rec := &command.AuditRecord{
		Time: c.arrived, Verb: c.target.Verb, Event: command.AuditCommand, Caller: c.caller,
		RequestID: c.header.RequestID, PayloadSHA256: c.digest,
		Outcome: command.OutcomeOK, Replayed: a.replayed, DurationUS: time.Since(c.start).Microseconds(),
	}
	if a.opened != "" {
		rec.Event, rec.Session = command.AuditStart, command.SessionDigest(a.opened)
	}
	if a.err != nil {
		rec.Outcome, rec.Kind, rec.Reason = a.err.Outcome, a.err.Kind, a.reason
		if rec.Reason == "" {
			rec.Reason = a.err.Message
		}
	}
	// What was refused changed nothing, and must not cost a write to the disk for
	// each try.
	s.audit.record(rec, c.ran && c.target.Verb.Changes())
}

func (s *server) logAnswer(c *call, a *answer) {
	level := slog.LevelDebug
	message := "command"
	var kind command.Kind
	reason := a.reason
	if a.err != nil {
		kind = a.err.Kind
		if reason == "" {
			reason = a.err.Message
		}
		if kind == command.KindDenied || a.silent {
			level, message = slog.LevelWarn, "command denied"
		}
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	s.log.Log(context.Background(), level, message, "verb", cut(string(c.target.Verb), 64), "caller", cut(c.caller.User, maxAuditUser),
		"request_id", c.header.RequestID, "kind", kind, "reason", reason, "replayed", a.replayed, "duration", time.Since(c.start))
}

func asCommandError(err error) *command.Error {
	var e *command.Error
	if errors.As(err, &e) {
		if e.Kind == "" {
			return command.NewError(command.KindBadRequest, "%s", e.Message)
		}
		return e
	}
	return command.NewError(command.KindBadRequest, "%v", err)
}

package agent

import (
	"context"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/journal"
)

var errEarlier = command.NewError(command.KindStartedNoResult,
	"it had started when the agent ended, and how it ended is not known; the agent ended what it found of it when it started again, and does not run it again")

// start puts a request into the journal. With an error it must not run.
func (t *table) start(e *entry, caller command.AuditCaller) error {
	if t.journal == nil {
		return nil
	}
	err := t.journal.Begin(journal.Entry{
		Key: journal.Key{UID: e.key.uid, ID: e.key.id}, User: caller.User, Account: caller.Account, Verb: e.verb, Digest: e.digest, Deadline: e.deadline,
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e.journaled = true
	return nil
}

// ended keeps how the process of a session ended, which it may do before the
// reply went out. An error is of the journal.
func (t *table) ended(e *entry, exitCode *int, failure *command.Error) error {
	t.mu.Lock()
	if e.over || t.entries[e.key] != e {
		t.mu.Unlock()
		return nil
	}
	e.over, e.open, e.exitCode, e.failure = true, false, exitCode, failure
	finished := e.finished
	t.mu.Unlock()
	if !finished {
		return nil // finish writes it
	}
	return t.journalEnd(e)
}

func (t *table) journalEnd(e *entry) error {
	t.ends.Lock() // what is read later is written later
	defer t.ends.Unlock()
	t.mu.Lock()
	o := journal.Outcome{Reply: e.reply.data, Error: errorReply(e.reply.err), Failure: errorReply(e.failure), ExitCode: e.exitCode, Open: e.open}
	journaled := e.journaled
	t.mu.Unlock()
	if !journaled {
		return nil
	}
	return t.journal.End(journal.Key{UID: e.key.uid, ID: e.key.id}, o)
}

// forgetDropped takes what was dropped out of the journal. What stays there for
// a fault of the disk is only kept longer.
func (t *table) forgetDropped() {
	t.mu.Lock()
	dropped := t.dropped
	t.dropped = nil
	t.mu.Unlock()
	for _, key := range dropped {
		_ = t.journal.Forget(key)
	}
}

// restore takes in what earlier runs have started, and settled the end of.
func (t *table) restore(started []journal.Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range started {
		e := &entry{
			key: requestKey{s.UID, s.ID}, verb: s.Verb, digest: s.Digest, deadline: s.Deadline, journaled: true, finished: true,
		}
		if o := s.Ended; o != nil {
			e.exitCode, e.failure = o.ExitCode, commandError(o.Failure)
			e.reply = reply{data: o.Reply, err: commandError(o.Error)}
		}
		if t.entries == nil {
			t.entries = make(map[requestKey]*entry)
		}
		t.entries[e.key] = e
		t.addLasting(e)
	}
}

func errorReply(e *command.Error) *command.ErrorReply {
	if e == nil {
		return nil
	}
	return &command.ErrorReply{Error: command.ErrorDetail{Kind: e.Kind, Message: e.Message}}
}

func commandError(r *command.ErrorReply) *command.Error {
	if r == nil {
		return nil
	}
	return command.NewError(r.Error.Kind, "%s", r.Error.Message)
}

// result tells what became of a request that changes something.
func (t *table) result(key requestKey) (command.ResultReply, *command.Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[key]
	switch {
	case e == nil || e.place != nil:
		return command.ResultReply{}, command.NewError(command.KindNotFound,
			"no request %s of this caller that changes something is remembered: it did not start here, or its result is not kept any more", key.id)
	case !e.finished || e.open:
		return command.ResultReply{}, command.NewError(command.KindStartedNoResult, "it is running; ask again later")
	}
	r := command.ResultReply{RequestID: key.id, Verb: e.verb, Outcome: command.OutcomeOK, ExitCode: e.exitCode}
	failure := e.reply.err
	if failure == nil {
		failure = e.failure
	}
	if failure != nil && failure.Kind == command.KindStartedNoResult {
		return command.ResultReply{}, failure
	}
	if failure != nil {
		r.Outcome, r.Message = failure.Outcome, failure.Message
	}
	return r, nil
}

// resultHandler answers result, for the caller of the request alone.
type resultHandler struct{ table *table }

func (resultHandler) inline() {}

func (h resultHandler) Handle(_ context.Context, req *Request) (any, error) {
	asked, err := command.DecodeRequest[command.ResultRequest](command.VerbResult, req.Payload)
	if err != nil {
		return nil, err
	}
	if err := command.CheckRequestID(asked.RequestID); err != nil {
		return nil, err
	}
	r, failure := h.table.result(requestKey{req.Caller.UID, asked.RequestID})
	if failure != nil {
		return nil, failure
	}
	return r, nil
}

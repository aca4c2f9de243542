package agent

import (
	"context"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/journal"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
)

// serveWorkloads takes up logs, exec and shell.
func (a *Agent) serveWorkloads() {
	a.workloads = workload.New(workload.Options{
		DeviceID: a.opts.DeviceID, Engine: a.engine, Sessions: a.server.sessions, Policy: a.opts.Policy, Log: a.log,
		Record: func(rec *command.AuditRecord) {
			a.audit.record(rec, rec.Verb.Changes())
			a.server.endedJob(rec)
		},
	})
	for verb, handle := range map[command.Verb]func(context.Context, workload.Call) (any, error){
		command.VerbLogs: a.workloads.Logs, command.VerbExec: a.workloads.Exec, command.VerbShell: a.workloads.Shell,
	} {
		a.server.handlers[verb] = HandlerFunc(func(ctx context.Context, req *Request) (any, error) {
			return handle(ctx, workload.Call{
				Verb: req.Verb, Caller: req.Caller, Header: req.Header, Payload: req.Payload, StillValid: req.StillValid, Ended: req.Ended, Now: a.now,
				Remaining: func() time.Duration {
					if req.Header.Deadline.IsZero() {
						return command.MaxDeadline
					}
					return req.Header.Deadline.Sub(a.now())
				},
			})
		})
	}
}

// settle gives what was running when an earlier run of the agent ended without a
// stop an end: nobody holds its sessions any more, so what is left of its programs
// is ended as a lost caller's is, and recorded.
func (a *Agent) settle(started []journal.Entry) {
	var lost []workload.Started
	for i := range started {
		e := &started[i]
		if e.Ended != nil && !e.Ended.Open {
			continue
		}
		lost = append(lost, workload.Started{Verb: e.Verb, UID: e.UID, RequestID: e.ID})
		event := command.AuditEnd
		if e.Ended == nil { // it was never answered
			event, e.Ended = command.AuditCommand, &journal.Outcome{Error: errorReply(errEarlier)}
		} else {
			e.Ended.Open, e.Ended.Failure = false, errorReply(errEarlier)
		}
		a.audit.record(&command.AuditRecord{
			Time: a.now(), Verb: e.Verb, Event: event, Caller: command.AuditCaller{User: e.User, UID: e.UID, Account: e.Account},
			RequestID: e.ID, PayloadSHA256: e.Digest, Outcome: errEarlier.Outcome, Kind: errEarlier.Kind, Reason: errEarlier.Message,
		}, true)
		a.server.journalFault(a.server.table.journal.End(e.Key, *e.Ended)) // so that the next run says no more of it
	}
	if len(lost) > 0 {
		a.log.Warn("an earlier run of the agent ended without a stop while commands were running; what was left of their programs is ended",
			"commands", len(lost), "processes", a.workloads.Reclaim(lost))
	}
}

package agent

import (
	"context"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
)

// serveWorkloads takes up logs, exec and shell.
func (a *Agent) serveWorkloads() {
	w := workload.New(workload.Options{
		DeviceID: a.opts.DeviceID, Engine: a.engine, Sessions: a.server.sessions, Policy: a.opts.Policy, Log: a.log,
		Record: func(rec *command.AuditRecord) {
			a.audit.record(rec, rec.Verb.Changes())
			a.server.endedJob(rec)
		},
	})
	for verb, handle := range map[command.Verb]func(context.Context, workload.Call) (any, error){
		command.VerbLogs: w.Logs, command.VerbExec: w.Exec, command.VerbShell: w.Shell,
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

package agent

import (
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// jobResults publishes how this device's part of each job ended. The broker
// confirms nothing and none of it is on disk: what is lost on the way is
// published again when the job asks again, and the verb result tells it too.
type jobResults struct {
	device string
	conn   func() *nats.Conn // the connection in use; nil: there is none
	log    *slog.Logger

	mu      sync.Mutex
	waiting []*command.JobResult // for a connection, the oldest first
}

// maxWaitingResults is how many results wait for a connection; older ones go.
const maxWaitingResults = 256

func (j *jobResults) publish(r *command.JobResult) {
	if j.send(r) {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) == maxWaitingResults {
		j.waiting = j.waiting[1:]
	}
	j.waiting = append(j.waiting, r)
}

// connected sends what has waited.
func (j *jobResults) connected() {
	j.mu.Lock()
	waiting := j.waiting
	j.waiting = nil
	j.mu.Unlock()
	for _, r := range waiting {
		j.publish(r)
	}
}

func (j *jobResults) send(r *command.JobResult) bool {
	nc := j.conn()
	if nc == nil || !nc.IsConnected() {
		return false
	}
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	if err := nc.Publish(command.JobSubject(j.device, command.JobSlot(r.Job)), data); err != nil {
		j.log.Debug("the result of a job waits for the next connection", "job", r.Job, "error", err)
		return false
	}
	return true
}

// inJob tells whether the command is a part of a job. Only programs are.
func (c *call) inJob() bool { return c.header.Job != "" && c.target.Verb == command.VerbExec }

// checkJob refuses a part of a job that may have been forgotten, or that would
// have to be remembered for too long.
func (s *server) checkJob(c *call) *answer {
	began := command.JobTime(c.header.Job)
	switch {
	case c.arrived.Sub(began) >= command.JobLifetime:
		return refuseWith(command.KindExpired, "the job is older than %v, and whether this device had its part is not remembered; nothing ran", command.JobLifetime)
	case began.Sub(c.arrived) > command.MaxJobAhead:
		return refuseWith(command.KindBadRequest, "the time in the job's id is %v ahead, more than the %v allowed",
			began.Sub(c.arrived).Round(time.Second), command.MaxJobAhead)
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// answeredJob publishes the result of a part of a job that is over with its
// answer. Where it had begun before, that result is published again: whoever
// asks again may not have found it.
func (s *server) answeredJob(c *call, a *answer) {
	if !c.inJob() || c.header.RequestID == "" || a.silent || a.opened != "" {
		return
	}
	r := &command.JobResult{
		Schema: command.Schema, Job: c.header.Job, DeviceID: s.device, UID: c.caller.UID, RequestID: c.header.RequestID, Verb: c.target.Verb,
		Time: c.arrived, Outcome: command.OutcomeOK, ExitCode: a.exitCode, DurationUS: time.Since(c.start).Microseconds(), Bytes: a.wrote,
	}
	if a.err != nil {
		r.Outcome, r.Kind = a.err.Outcome, a.err.Kind
	}
	if c.entry != nil {
		s.table.keepResult(c.entry, r)
	} else if earlier, began := s.table.resultOfJob(requestKey{c.caller.UID, c.header.RequestID}, r); began {
		if earlier == nil {
			return // it runs
		}
		r = earlier
	}
	s.jobs.publish(r)
}

// endedJob publishes the result of a part of a job whose session has ended.
func (s *server) endedJob(rec *command.AuditRecord) {
	if rec.Event != command.AuditEnd || rec.Verb != command.VerbExec {
		return
	}
	e, job := s.table.jobOf(requestKey{rec.Caller.UID, rec.RequestID})
	if job == "" {
		return
	}
	r := &command.JobResult{
		Schema: command.Schema, Job: job, DeviceID: s.device, UID: rec.Caller.UID, RequestID: rec.RequestID, Verb: rec.Verb,
		Time: rec.Time, Outcome: rec.Outcome, Kind: rec.Kind, ExitCode: rec.ExitCode, DurationUS: rec.DurationUS,
	}
	if rec.Bytes != nil {
		r.Bytes = &command.SessionBytes{Stdout: rec.Bytes.Stdout, Stderr: rec.Bytes.Stderr}
	}
	if end := command.EndReason(rec.Reason); end == command.EndCancelled || end == command.EndLeaseExpired {
		r.End = end
	}
	s.table.keepResult(e, r)
	s.jobs.publish(r)
}

// partOf notes which job a request is a part of.
func (t *table) partOf(e *entry, job string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.job = job
}

// jobOf finds a part of a job; job is empty where there is none.
func (t *table) jobOf(key requestKey) (e *entry, job string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e = t.entries[key]; e == nil {
		return nil, ""
	}
	return e, e.job
}

func (t *table) keepResult(e *entry, r *command.JobResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.result = r
}

// resultOfJob is how a part of a job that began before ended, nil while it runs.
// Of one that an earlier run of the agent began only what the journal keeps is
// known; the rest is r's.
func (t *table) resultOfJob(key requestKey, r *command.JobResult) (ended *command.JobResult, began bool) {
	t.mu.Lock()
	e := t.entries[key]
	if e == nil || e.result != nil {
		defer t.mu.Unlock()
		if e == nil {
			return nil, false
		}
		return e.result, true
	}
	running := e.running()
	t.mu.Unlock()
	if running {
		return nil, true
	}
	kept := *r
	kept.Outcome, kept.Kind, kept.ExitCode, kept.DurationUS, kept.Bytes = command.OutcomeOK, "", nil, 0, nil
	reply, failure := t.result(key)
	if failure != nil {
		kept.Outcome, kept.Kind = failure.Outcome, failure.Kind
	} else {
		kept.Outcome, kept.ExitCode = reply.Outcome, reply.ExitCode
	}
	return &kept, true
}

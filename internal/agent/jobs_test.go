package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// part is the header of a job's request to a device.
func (w *world) part(a *Agent, job string) command.RequestHeader {
	h := w.change(a)
	h.Job, h.RequestID = job, command.JobRequestID(job, a.opts.DeviceID)
	return h
}

func (w *world) newJob(age time.Duration) string {
	w.t.Helper()
	now, ok := w.clock.Earliest()
	if !ok {
		w.t.Fatal("the test does not know the time")
	}
	return command.NewJobID(now.Add(-age))
}

// awaitJob waits until the result of a device's part of a job is stored.
func (w *world) awaitJob(device, job string, cond func(command.JobResult) bool) command.JobResult {
	w.t.Helper()
	var r command.JobResult
	subject := command.JobSubject(device, command.JobSlot(job))
	testwait.For(w.t, patience, "the result of the job", func() bool {
		msg := w.last(access.StreamJobs, subject)
		if msg == nil {
			return false
		}
		var other bool
		var err error
		r, other, err = command.DecodeJobResult(subject, job, msg.Data)
		if err != nil {
			w.t.Fatal(err)
		}
		return !other && cond(r)
	})
	return r
}

func anyResult(command.JobResult) bool { return true }

func TestPartOfAJobLeavesItsResultAtTheBroker(t *testing.T) {
	w := newWorld(t)
	var fail atomic.Pointer[command.Error]
	o := w.options("d1")
	o.Handlers = map[command.Verb]Handler{command.VerbExec: HandlerFunc(func(context.Context, *Request) (any, error) {
		if e := fail.Load(); e != nil {
			return nil, e
		}
		return command.ExecReply{ExitCode: 3, Stdout: []byte("secret output"), Stderr: []byte("e")}, nil
	})}
	a := start(t, o)
	uid := command.UID(broker.UserOps)
	const payload = `{"argv":["secret-program"],"env":{"A":"secret"}}`

	job := w.newJob(0)
	w.must("d1", command.VerbExec, w.part(a.Agent, job), payload)
	r := w.awaitJob("d1", job, anyResult)
	if r.UID != uid || r.RequestID != command.JobRequestID(job, "d1") || r.Verb != command.VerbExec || r.Outcome != command.OutcomeOK ||
		r.ExitCode == nil || *r.ExitCode != 3 || r.Bytes == nil || *r.Bytes != (command.SessionBytes{Stdout: 13, Stderr: 1}) {
		t.Errorf("result %+v", r)
	}
	if msg := w.last(access.StreamJobs, command.JobSubject("d1", command.JobSlot(job))); len(msg.Data) > 512 {
		t.Errorf("%d bytes: %s", len(msg.Data), msg.Data)
	}
	// One that is refused leaves its result too.
	fail.Store(command.NewError(command.KindDenied, "the policy says no"))
	denied := w.newJob(0)
	w.must("d1", command.VerbExec, w.part(a.Agent, denied), payload)
	if r := w.awaitJob("d1", denied, anyResult); r.Outcome != command.OutcomeDenied || r.Kind != command.KindDenied || r.ExitCode != nil {
		t.Errorf("result %+v", r)
	}
	// Of a command without a job, or of another verb, there is none.
	before := w.last(access.StreamJobs, "fleet.job.d1.*")
	w.must("d1", command.VerbExec, w.change(a.Agent), payload)
	h := w.part(a.Agent, w.newJob(0))
	w.must("d1", command.VerbPing, h, "")
	w.awaitAudit("d1", 4)
	if after := w.last(access.StreamJobs, "fleet.job.d1.*"); string(after.Data) != string(before.Data) {
		t.Errorf("stored %s", after.Data)
	}
}

// Whoever goes on with a job asks again with the same id: it does not run again,
// whatever deadline was, whether or not the agent restarted, and its result is
// published again.
func TestPartOfAJobRunsOnce(t *testing.T) {
	w := newWorld(t)
	var runs atomic.Int64
	o := w.options("d1")
	o.Handlers = map[command.Verb]Handler{command.VerbExec: HandlerFunc(func(context.Context, *Request) (any, error) {
		runs.Add(1)
		return command.ExecReply{ExitCode: 3}, nil
	})}
	a := start(t, o)
	job := w.newJob(0)
	again := func(a *running, wantReplay bool) {
		t.Helper()
		reply := w.must("d1", command.VerbExec, w.part(a.Agent, job), `{"argv":["x"]}`)
		if kind := kindOf(reply); kind != "" || (reply.Header.Get(command.HeaderReplayed) == "true") != wantReplay {
			t.Fatalf("kind %q, headers %v: %s", kind, reply.Header, reply.Data)
		}
	}
	again(a, false)
	again(a, true)
	// Its id is remembered for as long as the job may ask, not only to its deadline.
	a.server.table.mu.Lock()
	ends := a.server.table.entries[requestKey{command.UID(broker.UserOps), command.JobRequestID(job, "d1")}].ends
	a.server.table.mu.Unlock()
	if least := command.JobTime(job).Add(command.JobLifetime); ends.Before(least) {
		t.Errorf("remembered until %v, less than %v", ends, least)
	}
	a.stop()
	a = start(t, o)
	var stored atomic.Pointer[nats.Msg]
	stored.Store(w.last(access.StreamJobs, command.JobSubject("d1", command.JobSlot(job))))
	again(a, true)
	testwait.For(t, patience, "the result once more", func() bool {
		m := w.last(access.StreamJobs, command.JobSubject("d1", command.JobSlot(job)))
		return m != nil && m.Header.Get("Nats-Sequence") != stored.Load().Header.Get("Nats-Sequence")
	})
	if r := w.awaitJob("d1", job, anyResult); r.Outcome != command.OutcomeOK || r.ExitCode == nil || *r.ExitCode != 3 {
		t.Errorf("result after a restart: %+v", r)
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("it ran %d times", n)
	}
}

func TestJobThatMayBeForgottenIsRefused(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.Handlers = map[command.Verb]Handler{command.VerbExec: HandlerFunc(func(context.Context, *Request) (any, error) {
		return command.ExecReply{}, nil
	})}
	a := start(t, o)
	for _, c := range []struct {
		name string
		age  time.Duration
		want command.Kind
	}{
		{"new", 0, ""},
		{"nearly too old", command.JobLifetime - time.Minute, ""},
		{"too old", command.JobLifetime, command.KindExpired},
		{"of a clock that is a little ahead", -command.MaxJobAhead / 2, ""},
		{"of the future", -2 * command.MaxJobAhead, command.KindBadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := w.newJob(c.age)
			if kind := kindOf(w.must("d1", command.VerbExec, w.part(a.Agent, job), `{"argv":["x"]}`)); kind != c.want {
				t.Errorf("kind %q, want %q", kind, c.want)
			}
			w.awaitJob("d1", job, func(r command.JobResult) bool { return r.Kind == c.want })
		})
	}
	h := w.part(a.Agent, w.newJob(0))
	h.Job = "7"
	if kind := kindOf(w.must("d1", command.VerbExec, h, `{"argv":["x"]}`)); kind != command.KindBadRequest {
		t.Errorf("no job id: kind %q", kind)
	}
}

// A part that was refused because the device was busy did not run, and may be
// asked for again with its only id.
func TestPartOfAJobThatFoundTheDeviceBusyMayAskAgain(t *testing.T) {
	w := newWorld(t)
	var busy atomic.Bool
	busy.Store(true)
	o := w.options("d1")
	o.Handlers = map[command.Verb]Handler{command.VerbExec: HandlerFunc(func(context.Context, *Request) (any, error) {
		if busy.Load() {
			return nil, command.NewError(command.KindBusy, "too many sessions")
		}
		return command.ExecReply{}, nil
	})}
	a := start(t, o)
	job := w.newJob(0)
	if kind := kindOf(w.must("d1", command.VerbExec, w.part(a.Agent, job), `{"argv":["x"]}`)); kind != command.KindBusy {
		t.Fatalf("kind %q", kind)
	}
	w.awaitJob("d1", job, func(r command.JobResult) bool { return r.Outcome == command.OutcomeBusy })
	busy.Store(false)
	if reply := w.must("d1", command.VerbExec, w.part(a.Agent, job), `{"argv":["x"]}`); kindOf(reply) != "" || reply.Header.Get(command.HeaderReplayed) != "" {
		t.Fatalf("headers %v: %s", reply.Header, reply.Data)
	}
	w.awaitJob("d1", job, func(r command.JobResult) bool { return r.Outcome == command.OutcomeOK })
}

// What ends while there is no connection is published on the next one.
func TestResultOfAJobWaitsForTheConnection(t *testing.T) {
	var conn atomic.Pointer[nats.Conn]
	j := &jobResults{device: "d1", conn: conn.Load}
	job := func(i int) *command.JobResult {
		return &command.JobResult{Schema: command.Schema, Job: command.NewJobID(time.Now()), DeviceID: "d1", DurationUS: int64(i)}
	}
	for i := range maxWaitingResults + 10 {
		j.publish(job(i))
	}
	if n := len(j.waiting); n != maxWaitingResults || j.waiting[0].DurationUS != 10 {
		t.Fatalf("%d wait, the oldest is %d", n, j.waiting[0].DurationUS)
	}
	w := newWorld(t)
	sub, err := w.dial(userInsider).SubscribeSync("fleet.job.d1.*")
	if err != nil {
		t.Fatal(err)
	}
	nc := w.dial(broker.UserDevice)
	conn.Store(nc)
	j.connected()
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(j.waiting) != 0 {
		t.Errorf("%d wait still", len(j.waiting))
	}
	testwait.For(t, patience, "all results", func() bool {
		n, _, err := sub.Pending()
		return err == nil && n == maxWaitingResults
	})
}

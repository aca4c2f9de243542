package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// Times of a job. Variables, so that tests need not wait for them.
var (
	outage    = command.SessionLease   // how long a lost connection is waited for: then sessions are lost too
	joinGrace = 500 * time.Millisecond // for the last output of a program that an earlier run of the job started
)

// ExecAllResult is how a program ended on one device.
type ExecAllResult struct {
	Device string
	ExecResult
	// Duration is the time from asking the device to the end; 0 where it was not
	// asked.
	Duration time.Duration
	// Resumed: an earlier run of the job started the program, and its output, if
	// there is any, lacks a beginning.
	Resumed bool
	// Err is why there is no exit code; nil: there is one.
	Err *command.Error
}

// Outcome is how it ended, as one word; a program that ended by itself is
// [command.OutcomeOK] whatever its exit code.
func (r ExecAllResult) Outcome() command.Outcome {
	if r.Err == nil {
		return command.OutcomeOK
	}
	return r.Err.Outcome
}

// NotStarted tells whether the device was not asked, because the run was stopped
// or aborted before its turn: Err matches [ErrNotStarted].
func (r ExecAllResult) NotStarted() bool { return r.Err != nil && errors.Is(r.Err, ErrNotStarted) }

// OK tells whether the program ran and gave exit code 0.
func (r ExecAllResult) OK() bool { return r.Err == nil && r.ExitCode == 0 }

// ExecAll runs a program on devices, at most [FanOut.Window] at a time (default
// [DefaultConcurrency]), and yields exactly one result for each device, as they
// end. A device that is named twice runs it once and yields once.
//
// The whole costs one read of the stored statuses for every 1,000 devices, one
// subscription for all replies and one for all output, and one request for each
// device. What the program reads is an end of file; where its output goes is said
// by [ExecOptions.Output]. [FanOut.Timeout] is how long a device may take to
// start the program, not how long that may run: for this there is
// [ExecOptions.Timeout].
//
// A connection that is lost for less than 30 s costs nothing. Beyond that, and
// once [FanOut.Stop] is closed or [FanOut.Abort] holds, no further device is asked
// ([ErrNotStarted], or why), and what runs goes on to its end. When ctx ends, or
// the loop is left, the programs that run are killed. Give the job of
// [Client.NewJob] in the options, and later again, to go on with the rest.
func (c *Client) ExecAll(ctx context.Context, devices []string, o ExecOptions, f FanOut) iter.Seq[ExecAllResult] {
	return func(yield func(ExecAllResult) bool) {
		e := &execAll{c: c, o: o, f: f, queued: unique(devices), yield: yield, more: true}
		e.left = len(e.queued)
		e.halted = e.prepare(ctx)
		defer e.close()
		e.run()
	}
}

// execAll is one run of a job. It runs in the goroutine of whoever ranges over
// its results; beside it run one goroutine for each device under way, and at most
// one that reads statuses.
type execAll struct {
	c       *Client
	o       ExecOptions
	f       FanOut
	request command.ExecRequest
	gate    gate
	out     *sessions

	outer   context.Context // the caller's
	ctx     context.Context // of the programs under way
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	results chan done     // room for all under way
	read    chan []target // room for the one read
	reading bool
	timer   *time.Timer

	queued  []string // no status was read yet
	ready   []target
	running int
	left    int // devices that have no result yet
	halted  *command.Error
	yield   func(ExecAllResult) bool
	more    bool // the caller wants more
}

// target is a device that can be asked, or why it cannot.
type target struct {
	device   string
	instance string
	err      *command.Error
	broken   bool // so are all others
}

// done is the result of a device.
type done struct {
	ExecAllResult
	halt *command.Error // no other device can be asked either
}

// prepare fails where nothing can be asked.
func (e *execAll) prepare(ctx context.Context) *command.Error {
	e.outer = ctx
	e.ctx, e.cancel = context.WithCancel(ctx)
	e.timer = time.NewTimer(time.Hour)
	if err := e.f.setDefaults(DefaultConcurrency, e.c.opts.Timeout); err != nil {
		return err
	}
	e.gate = newGate(e.f)
	e.results = make(chan done, min(e.f.Window, max(1, e.left)))
	e.read = make(chan []target, 1)
	if e.o.Stdin != nil || e.o.TTY != nil || e.o.Resize != nil || e.o.Signals != nil {
		return fault(command.OutcomeRejected, nil, "a program on many devices has no standard input, terminal or signals")
	}
	if ctx.Err() != nil {
		return contextFault(ctx, false)
	}
	if e.o.Job == (Job{}) {
		job, err := e.c.NewJob(ctx)
		if err != nil {
			return asFault(err)
		}
		e.o.Job = job
	}
	if err := e.o.Job.check(); err != nil {
		return err
	}
	e.request = e.o.request()
	var err *command.Error
	e.out, err = e.c.openSessions()
	return err
}

// close ends what is under way, and waits for it.
func (e *execAll) close() {
	e.cancel()
	e.wg.Wait()
	e.timer.Stop()
	if e.out != nil {
		e.out.close()
	}
}

func (e *execAll) run() {
	ended, stop := e.outer.Done(), e.f.Stop
	for e.left > 0 && e.more {
		e.launch()
		if e.left == 0 || !e.more {
			return
		}
		select {
		case d := <-e.results:
			e.running--
			if e.halted == nil {
				e.halted = d.halt
			}
			e.finish(d.ExecAllResult)
		case e.ready = <-e.read:
			e.reading = false
		case <-e.timer.C:
		case <-stop:
			stop = nil // the gate knows
		case <-ended:
			ended = nil
			if e.halted == nil {
				e.halted = contextFault(e.outer, false)
			}
		}
	}
}

// launch asks as many devices as may be asked now.
func (e *execAll) launch() {
	e.timer.Reset(time.Hour)
	for e.more {
		why := e.halted
		if why == nil {
			why = e.gate.shut()
		}
		switch {
		case why != nil:
			e.giveUp(why)
			return
		case len(e.ready) == 0:
			e.lookUp()
			return
		case e.ready[0].broken:
			e.halted = e.ready[0].err
		case e.running == e.f.Window:
			return
		case e.ready[0].err != nil:
			e.finish(ExecAllResult{Device: e.ready[0].device, Err: of(e.ready[0].err, command.VerbExec, e.ready[0].device, "")})
			e.ready = e.ready[1:]
		case !e.gate.pass(time.Now()):
			e.timer.Reset(time.Until(e.gate.next))
			return
		default:
			t := e.ready[0]
			e.ready = e.ready[1:]
			e.running++
			e.wg.Go(func() { e.results <- e.one(t) })
		}
	}
}

// giveUp ends the devices that were not asked.
func (e *execAll) giveUp(why *command.Error) {
	for len(e.ready) > 0 && e.more {
		t := e.ready[0]
		e.ready = e.ready[1:]
		e.finish(ExecAllResult{Device: t.device, Err: of(why, command.VerbExec, t.device, "")})
	}
	for len(e.queued) > 0 && e.more {
		device := e.queued[0]
		e.queued = e.queued[1:]
		e.finish(ExecAllResult{Device: device, Err: of(why, command.VerbExec, device, "")})
	}
}

// lookUp starts to read the statuses of the next devices, unless that runs.
func (e *execAll) lookUp() {
	if e.reading || len(e.queued) == 0 {
		return
	}
	n := min(len(e.queued), readBatch)
	batch := e.queued[:n]
	e.queued = e.queued[n:]
	e.reading = true
	e.wg.Go(func() { e.read <- e.targets(batch) })
}

// targets reads the instances of devices.
func (e *execAll) targets(devices []string) []target {
	all := make([]target, len(devices))
	at := make(map[string]int, len(devices))
	subjects := make([]string, 0, len(devices))
	for i, d := range devices {
		all[i] = target{device: d, err: checkDevice(d)}
		if all[i].err == nil {
			all[i].err = offlineFault(lastSeen{read: true}) // unless a status is found
			at[d] = i
			subjects = append(subjects, command.StatusSubject(d))
		}
	}
	for {
		err := e.c.lastOf(e.ctx, access.StreamStatus, subjects, func(m stored) {
			if i, asked := at[lastToken(m.Subject)]; asked {
				all[i].instance, all[i].err = instanceOf(all[i].device, m)
			}
		})
		if err == nil || len(subjects) == 0 {
			return all
		}
		if !e.c.comesBack(err) || !e.connected() {
			all[0].broken, all[0].err = true, asFault(err)
			return all
		}
	}
}

// connected waits for a connection that was lost; false: it does not come back.
func (e *execAll) connected() bool {
	limit := time.Now().Add(outage)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		switch {
		case e.c.nc.IsConnected():
			return true
		case e.c.nc.IsClosed() || e.c.nc.IsDraining() || time.Now().After(limit):
			return false
		}
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			return false
		case <-e.c.ctx.Done():
			return false
		}
	}
}

func (e *execAll) finish(r ExecAllResult) {
	e.left--
	if r.Err != nil && r.RequestID == "" { // of the others it is noted
		e.c.note(e.outer, r.Err)
	}
	e.gate.ended(r.OK(), r.Err)
	e.more = e.yield(r)
}

// one runs the program on one device.
func (e *execAll) one(t target) done {
	d := done{ExecAllResult: ExecAllResult{Device: t.device}}
	began := time.Now()
	d.RequestID = command.JobRequestID(e.o.Job.ID, t.device)
	s, err := e.open(t)
	var stdout, stderr io.Writer
	if err == nil {
		defer s.close()
		if e.o.Output != nil {
			stdout, stderr = e.o.Output(t.device)
		}
		err = e.ask(s)
		if err != nil && errors.Is(err, ErrNATS) && err.Kind == "" {
			d.halt = err // it did not come back
		}
	}
	if err == nil {
		if err = e.follow(s, stdout, stderr, &d.ExecAllResult); err != nil {
			e.c.note(e.outer, of(err, command.VerbExec, t.device, d.RequestID))
		}
	}
	d.Duration = time.Since(began)
	if err != nil {
		d.Err = of(err, command.VerbExec, t.device, d.RequestID)
	}
	return d
}

// open makes the stream of a device.
func (e *execAll) open(t target) (*stream, *command.Error) {
	s, err := e.c.newStream(command.VerbExec, t.device, e.o.Window, command.DefaultExecWindow, nil)
	if err != nil {
		return nil, err
	}
	s.id = command.JobSessionID(e.o.Job.Secret, t.device)
	s.subject = command.SessionSubject(t.device, s.uid, s.id)
	s.reqID = command.JobRequestID(e.o.Job.ID, t.device)
	s.shared = e.out.subject
	s.part = part{job: e.o.Job.ID, instance: t.instance, timeout: e.f.Timeout}
	if !e.c.streams.add(s) {
		return nil, fault(command.OutcomeFailed, ErrClosed, "not sent")
	}
	return s, nil
}

// ask asks the device to start the program, again where the connection was lost
// meanwhile and where the agent has restarted since its status was read: under
// the one id it runs once.
func (e *execAll) ask(s *stream) *command.Error {
	request := e.request
	request.Session = s.session()
	for again, reread := false, false; ; {
		err := s.ask(e.ctx, request)
		switch {
		case err == nil:
			s.mayRun = true
			s.mu.Lock()
			s.heard = time.Now()
			s.mu.Unlock()
			s.tending.Go(s.tend)
			if s.part.replayed {
				s.takeUp(!again)
			}
			return nil
		case err.Kind == command.KindBadRequest && !reread:
			reread = true
			instance, failed := e.c.instance(e.ctx, s.device)
			if failed != nil || instance == s.part.instance {
				return err
			}
			s.part.instance = instance
		case err.Kind == "" && errors.Is(err, ErrNATS) && e.connected() && e.ctx.Err() == nil:
			again = true
		default:
			s.mayRun = err.Kind == "" && (err.Outcome == command.OutcomeTimeout || err.Outcome == command.OutcomeFailed)
			return err
		}
	}
}

// follow hands the program's output out until it has ended.
func (e *execAll) follow(s *stream, stdout, stderr io.Writer, r *ExecAllResult) *command.Error {
	if s.part.replayed {
		if earlier, err := e.c.Result(e.ctx, s.device, s.reqID); err == nil && !s.speaks(joinGrace) {
			r.Resumed = true
			return told(earlier, r)
		}
	}
	end, err := s.copy(e.ctx, to(stdout, stderr))
	s.mu.Lock()
	r.Resumed = s.join.joined
	s.mu.Unlock()
	r.Bytes = end.Bytes
	if end.ExitCode != nil {
		r.ExitCode = *end.ExitCode
	}
	if err == nil && end.ExitCode == nil {
		return fault(command.OutcomeFailed, nil, "the device does not know the exit code")
	}
	if err == nil {
		return nil
	}
	err = unknownEnd(err, e.ctx)
	if err.Outcome == command.OutcomeStartedNoResult && e.connected() {
		if earlier, failed := e.c.Result(e.ctx, s.device, s.reqID); failed == nil {
			r.Resumed = true
			return told(earlier, r)
		}
	}
	return err
}

// speaks waits for output, or the end, of a session.
func (s *stream) speaks(within time.Duration) bool {
	limit := time.NewTimer(within)
	defer limit.Stop()
	select {
	case <-s.arrived:
		s.wake() // for copy
		return true
	case <-limit.C:
		return false
	}
}

// told takes over what the verb result says.
func told(reply command.ResultReply, r *ExecAllResult) *command.Error {
	switch {
	case !reply.Outcome.Known():
		return fault(command.OutcomeFailed, ErrBadReply, "the device says %.40q of it", reply.Outcome)
	case reply.Outcome != command.OutcomeOK:
		return fault(reply.Outcome, nil, "%s", command.Printable(reply.Message))
	case reply.ExitCode == nil:
		return fault(command.OutcomeFailed, nil, "the device does not know the exit code")
	}
	r.ExitCode = *reply.ExitCode
	return nil
}

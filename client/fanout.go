package client

import (
	"context"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/directget"
)

// FanOut are the settings of one fan-out. The zero value is good.
type FanOut struct {
	// Window is how many commands are in flight at a time. Default 4096 for pings
	// and 64 for programs, at most MaxWindow. Without a bound, a fan-out to tens of
	// thousands of devices has outliers of seconds.
	Window int
	// Rate is how many devices are asked in a second, at most. 0: no limit.
	Rate float64
	// Abort ends the fan-out early where too many devices do not end well. nil:
	// never.
	Abort *Abort
	// Stop, once closed, lets no further device be asked; what is under way goes on
	// to its end. nil: nobody stops it so.
	Stop <-chan struct{}
	// Timeout is how long each device is waited for, from when it is asked.
	// Default: [Options.Timeout].
	Timeout time.Duration
}

func (f *FanOut) setDefaults(window int, timeout time.Duration) *command.Error {
	if f.Window == 0 {
		f.Window = window
	}
	if f.Timeout == 0 {
		f.Timeout = timeout
	}
	if err := checkTimeout(f.Timeout); err != nil {
		return fault(command.OutcomeRejected, err, "fan-out")
	}
	if f.Window < 1 || f.Window > MaxWindow {
		return fault(command.OutcomeRejected, nil, "fan-out: window %d: want 1 to %d", f.Window, MaxWindow)
	}
	if !(f.Rate >= 0) || f.Rate > MaxRate {
		return fault(command.OutcomeRejected, nil, "fan-out: rate %v: want 0 (no limit) to %d devices a second", f.Rate, MaxRate)
	}
	return f.Abort.check()
}

// scatter is one fan-out. It runs in the goroutine of whoever ranges over its
// results, which alone sends, waits and hands out; only the look at what silent
// devices last reported runs beside it, one at a time, for all that have gathered
// by then.
//
// A device is queued, then in flight. From there it is answered (done), or
// nobody took the command (gone, until a look tells whether it just came up:
// then it waits and is in flight once more), or its time ran out (gone too, for
// the message).
type scatter struct {
	c       *Client
	ctx     context.Context
	verb    command.Verb
	payload []byte
	timeout time.Duration // of one device
	window  int

	queued   []string
	events   chan event // room for all in flight, so that nothing blocks the mux
	inFlight int
	sent     fifo // in flight, in the order sent, which is that of their timeouts
	waiting  [len(retryDelays)]fifo

	gone    []gone // not looked at yet
	looking []gone // being looked at
	looked  chan map[string]lastSeen
	blind   bool // a look failed; no more looks
	cancel  context.CancelFunc

	stopped *command.Error // nothing is sent any more
	gate    gate           // lets devices that are queued go
	timer   *time.Timer
	left    int // devices that have no result yet
	// emit hands a result out, and tells whether it is good and more are wanted.
	emit func(device string, a answer, failed *command.Error) (good, more bool)
	over bool // the caller wants no more
}

// gone is a call without a reply.
type gone struct {
	*call
	timeout time.Duration // how long it waited; 0: nobody listened
}

// fifo is a queue of calls.
type fifo struct {
	calls []*call
	head  int
}

func (q *fifo) push(c *call) { q.calls = append(q.calls, c) }

func (q *fifo) peek() *call {
	if q.head == len(q.calls) {
		return nil
	}
	return q.calls[q.head]
}

func (q *fifo) pop() {
	q.calls[q.head] = nil
	q.head++
	if q.head == len(q.calls) {
		q.calls, q.head = q.calls[:0], 0
	} else if q.head >= 1024 && q.head*2 >= len(q.calls) {
		n := copy(q.calls, q.calls[q.head:])
		clear(q.calls[n:])
		q.calls, q.head = q.calls[:n], 0
	}
}

func newScatter(ctx context.Context, c *Client, verb command.Verb, payload []byte, devices []string, f FanOut) *scatter {
	s := &scatter{
		c: c, ctx: ctx, verb: verb, payload: payload, timeout: f.Timeout, window: f.Window, queued: devices, left: len(devices),
		events: make(chan event, max(0, min(f.Window, len(devices)))), looked: make(chan map[string]lastSeen, 1),
		timer: time.NewTimer(time.Hour), cancel: func() {}, gate: newGate(f),
	}
	return s
}

// close gives up what is in flight and waits for the look that is under way.
func (s *scatter) close() {
	s.cancel()
	if s.looking != nil {
		<-s.looked
	}
	for call := s.sent.peek(); call != nil; call = s.sent.peek() {
		if !call.done {
			s.c.mux.drop(call)
		}
		s.sent.pop()
	}
	s.timer.Stop()
}

// run asks every device and hands out one result for each.
func (s *scatter) run(emit func(device string, a answer, failed *command.Error) (good, more bool)) {
	s.emit = emit
	// Once ctx has ended, its channel is ready for ever.
	ended := s.ctx.Done()
	stop := s.gate.stop
	for s.left > 0 && !s.over {
		s.askMore()
		s.look()
		if s.left == 0 || s.over {
			return
		}
		s.arm()
		select {
		case e := <-s.events:
			s.take(e)
		case all := <-s.looked:
			s.resolve(all)
		case <-s.timer.C:
			s.expire(time.Now())
		case <-stop:
			stop = nil // the gate knows
		case <-ended:
			ended = nil
			s.end()
		}
	}
}

// askMore sends until the window is full. Devices that wait to be asked again
// come first.
func (s *scatter) askMore() {
	if s.stopped == nil && s.ctx.Err() != nil {
		s.end()
	}
	if s.stopped != nil {
		s.giveUp(s.stopped)
		return
	}
	now := time.Now()
	for i := range s.waiting {
		for call := s.waiting[i].peek(); call != nil && s.inFlight < s.window && !call.deadline.After(now); call = s.waiting[i].peek() {
			s.waiting[i].pop()
			s.ask(call.device, call.requestID, call.attempt)
		}
	}
	for len(s.queued) > 0 && s.room() && !s.over {
		if shut := s.gate.shut(); shut != nil {
			s.giveUp(shut)
			return
		}
		if !s.gate.pass(now) {
			return
		}
		device := s.queued[0]
		s.queued = s.queued[1:]
		s.ask(device, "", 0)
	}
}

// room tells whether another device may be asked. A fan-out that may be aborted
// waits for the outcome of those that are being looked at: they may be the ones
// too many.
func (s *scatter) room() bool {
	n := s.inFlight
	if s.gate.abort != nil {
		n += len(s.gone) + len(s.looking)
	}
	return n < s.window
}

// giveUp ends the devices that were not asked.
func (s *scatter) giveUp(why *command.Error) {
	for len(s.queued) > 0 && !s.over {
		device := s.queued[0]
		s.queued = s.queued[1:]
		s.finish(&call{device: device}, answer{}, why)
	}
}

// ask sends the command to one device.
func (s *scatter) ask(device, requestID string, attempt int) {
	call := &call{device: device, requestID: requestID, attempt: attempt, to: s.events}
	if err := checkDevice(device); err != nil {
		s.finish(call, answer{}, err)
		return
	}
	if requestID == "" {
		call.requestID = command.NewRequestID()
	}
	call.subject = command.Subject(device, s.verb)
	header := command.RequestHeader{RequestID: call.requestID, OperatorSub: s.c.opts.OperatorSub}
	err := s.c.setDeadline(s.ctx, s.verb, &header, s.timeout)
	if err == nil {
		err = s.c.send(call, s.payload, header)
	}
	if err != nil {
		s.finish(call, answer{}, err)
		return
	}
	call.deadline = call.sent.Add(s.timeout)
	s.inFlight++
	s.sent.push(call)
}

// take handles what became of a call in flight.
func (s *scatter) take(e event) {
	call := e.call
	call.done = true
	s.inFlight--
	switch {
	case e.err != nil:
		s.finish(call, answer{}, e.err)
	case directget.NoResponders(e.msg.Header, e.msg.Data):
		s.miss(gone{call: call})
	default:
		s.finish(call, answer{header: e.msg.Header, data: e.msg.Data, rtt: e.at.Sub(call.sent)}, nil)
	}
}

// miss handles a call without a reply.
func (s *scatter) miss(g gone) {
	if g.attempt > 0 && g.timeout == 0 {
		// Looked at before: it came up just now.
		if g.attempt < len(retryDelays) && s.stopped == nil {
			s.wait(g.call)
			return
		}
	}
	s.gone = append(s.gone, g)
}

// wait has the device asked again later.
func (s *scatter) wait(c *call) {
	again := &call{device: c.device, requestID: c.requestID, attempt: c.attempt + 1, deadline: time.Now().Add(retryDelays[c.attempt])}
	s.waiting[c.attempt].push(again)
}

// look starts a look at what the silent devices last reported, unless one runs.
func (s *scatter) look() {
	if s.looking != nil || len(s.gone) == 0 {
		return
	}
	if s.blind {
		s.looking, s.gone = s.gone, nil
		s.resolve(nil)
		return
	}
	n := min(len(s.gone), readBatch)
	s.looking, s.gone = s.gone[:n:n], s.gone[n:]
	devices := make([]string, n)
	for i, g := range s.looking {
		devices[i] = g.device
	}
	ctx, cancel := detached(s.ctx, lookupAllTimeout)
	s.cancel = cancel
	go func() { // resolve or close waits for it
		s.looked <- s.c.lookUpAll(ctx, devices)
	}()
}

// resolve gives the devices that were looked at their outcome, or another try.
func (s *scatter) resolve(all map[string]lastSeen) {
	s.cancel()
	looking := s.looking
	s.looking = nil
	s.blind = s.blind || all == nil
	for i, g := range looking {
		seen := all[g.device]
		switch {
		case s.over:
			return
		case g.timeout > 0:
			s.finish(g.call, answer{}, timeoutFault(g.timeout, seen))
		case g.attempt == 0 && seen.justUp() && s.stopped == nil:
			s.wait(g.call)
		default:
			s.finish(g.call, answer{}, offlineFault(seen))
		}
		looking[i].call = nil
	}
}

// expire ends the calls whose time is up.
func (s *scatter) expire(now time.Time) {
	// Replies that are here already count, whenever they are looked at.
	for len(s.events) > 0 && !s.over {
		s.take(<-s.events)
	}
	for call := s.sent.peek(); call != nil && (call.done || !call.deadline.After(now)); call = s.sent.peek() {
		s.sent.pop()
		if !call.done && s.c.mux.drop(call) {
			s.inFlight--
			s.miss(gone{call: call, timeout: max(1, now.Sub(call.sent))})
		}
	}
}

// end gives every device that has no result yet the outcome that the end of the
// context leaves.
func (s *scatter) end() {
	for len(s.events) > 0 && !s.over {
		s.take(<-s.events)
	}
	s.stopped = contextFault(s.ctx, false)
	late := contextFault(s.ctx, true)
	now := time.Now()
	for call := s.sent.peek(); call != nil && !s.over; call = s.sent.peek() {
		s.sent.pop()
		if call.done || !s.c.mux.drop(call) {
			continue // its event is in the channel
		}
		s.inFlight--
		if late.Outcome == command.OutcomeTimeout {
			s.miss(gone{call: call, timeout: max(1, now.Sub(call.sent))})
		} else {
			s.finish(call, answer{}, late)
		}
	}
	for i := range s.waiting {
		for call := s.waiting[i].peek(); call != nil; call = s.waiting[i].peek() {
			s.waiting[i].pop()
			s.miss(gone{call: call})
		}
	}
}

// finish hands out the result of a device.
func (s *scatter) finish(call *call, a answer, failed *command.Error) {
	s.left--
	a.requestID = call.requestID
	if failed != nil {
		failed = of(failed, s.verb, call.device, call.requestID)
		s.c.note(s.ctx, failed)
	}
	good, more := s.emit(call.device, a, failed)
	s.gate.ended(good, failed)
	s.over = s.over || !more
}

// arm sets the timer to what happens next by itself.
func (s *scatter) arm() {
	for call := s.sent.peek(); call != nil && call.done; call = s.sent.peek() {
		s.sent.pop()
	}
	next := time.Time{}
	if call := s.sent.peek(); call != nil {
		next = call.deadline
	}
	for i := range s.waiting {
		// With a full window a device that waits goes when a slot is free.
		if call := s.waiting[i].peek(); call != nil && s.inFlight < s.window && (next.IsZero() || call.deadline.Before(next)) {
			next = call.deadline
		}
	}
	if len(s.queued) > 0 && s.room() && (next.IsZero() || s.gate.next.Before(next)) {
		next = s.gate.next
	}
	if next.IsZero() {
		s.timer.Reset(time.Hour)
		return
	}
	s.timer.Reset(time.Until(next))
}

package client

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// DefaultWindow is how many commands of a fan-out are under way at once. Without
// a bound the broker's buffers decide, with outliers of seconds.
const DefaultWindow = 4096

// FanOut tunes a command to many devices. The zero value is ready to use.
type FanOut struct {
	// Window is how many commands are under way at once; default [DefaultWindow].
	Window int
	// Timeout is how long each command waits for its reply, from when it is sent;
	// default: the client's.
	Timeout time.Duration
}

// fan is one fan-out under way. Its methods run on the caller's goroutine; only
// landed and explained bring something from elsewhere.
type fan[T any] struct {
	c       *Client
	ctx     context.Context
	verb    command.Verb
	payload []byte
	timeout time.Duration
	window  int
	decode  func(device, requestID string, r reply) Result[T]
	yield   func(Result[T]) bool

	todo     []string
	flying   int
	order    []*flight // by deadline; ended ones are skipped
	landed   chan landing
	silent   []*flight // offline or timed out, to be looked up
	retries  []*flight // to be sent again at their resend time
	looking  bool
	explored chan map[string]lastSeen // answers of lookups
	asked    []*flight                // what the lookup under way is about
	lookups  sync.WaitGroup
}

// flight is one command under way.
type flight struct {
	out      outgoing
	req      *request
	sent     time.Time
	deadline time.Time
	attempt  int
	resend   time.Time
	timedOut bool
	ended    bool
}

type landing struct {
	f   *flight
	msg *nats.Msg
	err error
	at  time.Time
}

func fanOut[T any](ctx context.Context, c *Client, verb command.Verb, devices []string, payload []byte, o FanOut,
	decode func(device, requestID string, r reply) Result[T],
) iter.Seq[Result[T]] {
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.Timeout <= 0 {
		o.Timeout = c.opts.Timeout
	}
	return func(yield func(Result[T]) bool) {
		f := &fan[T]{
			c: c, ctx: ctx, verb: verb, payload: payload, timeout: o.Timeout, window: o.Window, decode: decode, yield: yield,
			todo: distinct(devices), landed: make(chan landing, o.Window), explored: make(chan map[string]lastSeen, 1),
		}
		f.run()
	}
}

func distinct(devices []string) []string {
	seen := make(map[string]struct{}, len(devices))
	once := make([]string, 0, len(devices))
	for _, d := range devices {
		if _, dup := seen[d]; !dup {
			seen[d] = struct{}{}
			once = append(once, d)
		}
	}
	return once
}

func (f *fan[T]) run() {
	defer f.lookups.Wait()
	defer func() {
		for _, fl := range f.order {
			if !fl.ended {
				f.c.mux.giveUp(fl.req)
			}
		}
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if !f.fill() {
			return
		}
		f.look()
		if f.flying == 0 && len(f.todo) == 0 && len(f.retries) == 0 && !f.looking {
			return
		}
		timer.Reset(f.untilNext())
		more := true
		select {
		case l := <-f.landed:
			more = f.land(l)
		case seen := <-f.explored:
			more = f.explain(seen)
		case <-timer.C:
			f.expire(time.Now())
		case <-f.ctx.Done():
			more = f.abandon()
		}
		if !more {
			return
		}
	}
}

// fill sends until the window is full. false: the caller has heard enough.
func (f *fan[T]) fill() bool {
	now := time.Now()
	for len(f.retries) > 0 && f.flying < f.window && !f.retries[0].resend.After(now) {
		fl := f.retries[0]
		f.retries = f.retries[1:]
		if !f.send(fl) {
			return false
		}
	}
	for len(f.todo) > 0 && f.flying < f.window {
		device := f.todo[0]
		f.todo = f.todo[1:]
		if err := command.CheckDeviceID(device); err != nil {
			if !f.end(device, "", about(err, f.verb, device, "")) {
				return false
			}
			continue
		}
		fl := &flight{out: f.c.prepare(f.ctx, f.verb, device, f.payload, f.timeout), deadline: time.Now().Add(f.timeout)}
		if !f.send(fl) {
			return false
		}
		// Take up what came meanwhile, so that results flow from the start.
		select {
		case l := <-f.landed:
			if !f.land(l) {
				return false
			}
		default:
		}
	}
	return true
}

func (f *fan[T]) send(fl *flight) bool {
	fl.sent = time.Now()
	fl.ended = false
	req, err := f.c.mux.send(fl.out.message(), func(msg *nats.Msg, err error) {
		f.landed <- landing{fl, msg, err, time.Now()}
	})
	if err != nil {
		return f.end(fl.out.device, fl.out.header.RequestID, about(err, f.verb, fl.out.device, fl.out.header.RequestID))
	}
	fl.req = req
	f.flying++
	f.order = append(f.order, fl)
	return true
}

// land takes up what ended a flight.
func (f *fan[T]) land(l landing) bool {
	f.flying--
	fl := l.f
	fl.ended = true
	device, id := fl.out.device, fl.out.header.RequestID
	switch {
	case l.err != nil:
		return f.end(device, id, about(l.err, f.verb, device, id))
	case isNoResponders(l.msg):
		f.silent = append(f.silent, fl)
		return true
	}
	return f.yield(f.decode(device, id, reply{l.msg, l.at.Sub(fl.sent)}))
}

// expire moves what waited too long to what is looked up.
func (f *fan[T]) expire(now time.Time) {
	for len(f.order) > 0 {
		fl := f.order[0]
		if !fl.ended {
			if fl.deadline.After(now) {
				return
			}
			if !f.c.mux.giveUp(fl.req) {
				return // its reply is in landed
			}
			f.flying--
			fl.ended, fl.timedOut = true, true
			f.silent = append(f.silent, fl)
		}
		f.order = f.order[1:]
	}
}

// untilNext is how long nothing has to be done but wait for messages.
func (f *fan[T]) untilNext() time.Duration {
	for len(f.order) > 0 && f.order[0].ended {
		f.order = f.order[1:]
	}
	next := time.Hour
	if len(f.order) > 0 {
		next = min(next, time.Until(f.order[0].deadline))
	}
	if len(f.retries) > 0 {
		next = min(next, time.Until(f.retries[0].resend))
	}
	return max(next, 0)
}

// look starts a lookup of the silent ones unless one is under way: while it
// runs, more of them gather for the next, so that two reads serve many devices.
func (f *fan[T]) look() {
	if f.looking || len(f.silent) == 0 {
		return
	}
	n := min(len(f.silent), maxMultiLast)
	f.asked, f.silent = f.silent[:n:n], f.silent[n:]
	devices := make([]string, n)
	for i, fl := range f.asked {
		devices[i] = fl.out.device
	}
	f.looking = true
	f.lookups.Go(func() { f.explored <- f.c.lookup(f.ctx, devices) })
}

// explain ends the silent ones, or has those that only just came up asked again.
func (f *fan[T]) explain(seen map[string]lastSeen) bool {
	f.looking = false
	for _, fl := range f.asked {
		last := seen[fl.out.device]
		var err *command.Error
		switch {
		case fl.timedOut:
			err = f.c.timedOut(fl.out, last)
		case fl.attempt < len(retryAfter) && f.c.justCameUp(last) && f.ctx.Err() == nil:
			fl.resend = time.Now().Add(retryAfter[fl.attempt])
			fl.attempt++
			f.retries = append(f.retries, fl)
			continue
		default:
			err = f.c.offline(fl.out, last)
		}
		if !f.end(fl.out.device, fl.out.header.RequestID, err) {
			return false
		}
	}
	f.asked = nil
	return true
}

// abandon ends everything that is left, because the caller's context has ended.
func (f *fan[T]) abandon() bool {
	err := ended(f.ctx.Err())
	for _, fl := range f.order {
		if fl.ended || !f.c.mux.giveUp(fl.req) {
			continue
		}
		fl.ended = true
		f.flying--
		if !f.end(fl.out.device, fl.out.header.RequestID, about(err, f.verb, fl.out.device, fl.out.header.RequestID)) {
			return false
		}
	}
	for f.flying > 0 { // given up too late: their replies are on the way to us
		if !f.land(<-f.landed) {
			return false
		}
	}
	if f.looking {
		if !f.explain(<-f.explored) {
			return false
		}
	}
	for _, fl := range append(f.silent, f.retries...) {
		if !f.end(fl.out.device, fl.out.header.RequestID, f.c.offline(fl.out, lastSeen{})) {
			return false
		}
	}
	f.silent, f.retries = nil, nil
	for _, device := range f.todo {
		e := about(err, f.verb, device, "")
		e.Message = "not sent: " + e.Message
		if !f.end(device, "", e) {
			return false
		}
	}
	f.todo = nil
	return false
}

func (f *fan[T]) end(device, requestID string, err *command.Error) bool {
	return f.yield(Result[T]{Device: device, RequestID: requestID, Err: f.c.record(err)})
}

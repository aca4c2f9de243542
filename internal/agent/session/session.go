package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Why a session ended before its source did; what [context.Cause] of its
// context gives.
var (
	ErrCancelled    = errors.New("the caller cancelled the session")
	ErrLeaseExpired = errors.New("the caller was not heard of for the lease of the session")
	ErrStopping     = errors.New("the agent stops")
	ErrMaxDuration  = errors.New("the session reached the longest duration that the agent's policy allows")
	ErrTimeout      = errors.New("the program ran as long as the caller allowed")
	ErrIdle         = errors.New("nothing was typed or printed for the idle timeout of the agent's policy")
	errProtocol     = errors.New("the caller broke the protocol of sessions")
)

// Result is how the source of a session ended.
type Result struct {
	ExitCode *int           // nil: there was no process, or its code is not known
	Err      *command.Error // nil: it came to its end
}

// Ended is what is known of a session once its source has ended.
type Ended struct {
	Result
	Reason   command.EndReason
	Bytes    command.AuditBytes
	Duration time.Duration
}

// Control is something the caller asks of the process. Exactly one is set.
type Control struct {
	Resize *command.Resize
	Signal *command.Signal
}

// Session is one stream to a caller. Write and Stdin are for its source; they
// wait for the caller, and fail once the session's context has ended.
type Session struct {
	m       *Manager
	key     key
	subject string
	window  int64
	open    Open
	began   time.Time

	ctx      context.Context
	cancel   context.CancelCauseFunc
	controls chan struct{}
	wake     chan struct{} // the pump has something to look at

	mu      sync.Mutex
	changed sync.Cond // of what Write and Read wait for
	out     output
	in      input
	stdout  int64 // bytes taken in
	stderr  int64
	heard   time.Time // when the caller last said something
	busy    time.Time // when bytes last moved
	orders  orders
	resize  *command.Resize
	sized   uint64 // number of the last resize
	signals []command.Signal
	tell    bool      // a progress message is due
	resend  bool      // what is not acknowledged is to be sent again
	resent  time.Time // when it last was
	moved   time.Time // when something was acknowledged
	notices []string
	ended   time.Time // when the end was put in out; zero: it was not
	nextTry time.Time // after a failed send
	sentAt  time.Time
}

// Context ends when the source must: cancelled, lease expired, too long, the
// agent stops.
func (s *Session) Context() context.Context { return s.ctx }

// Stdin is the caller's standard input.
func (s *Session) Stdin() io.Reader { return stdin{s} }

// Controls has something in it when NextControl has.
func (s *Session) Controls() <-chan struct{} { return s.controls }

// NextControl is what the caller asks of the process next. Of several resizes
// that wait only the last one is kept.
func (s *Session) NextControl() (c Control, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.resize != nil:
		c.Resize, s.resize = s.resize, nil
	case len(s.signals) > 0:
		c.Signal = &s.signals[0]
		s.signals = s.signals[1:]
	default:
		return Control{}, false
	}
	return c, true
}

// maxSignals is how many signals may wait: those say enough.
const maxSignals = 16

func (s *Session) cause() error { return context.Cause(s.ctx) }

// Write takes output in and waits while there is no credit. It returns less than
// len(p) only with the cause of the session's end.
func (s *Session) Write(stream command.Stream, p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		took := s.out.append(stream, p[n:])
		n += took
		if took > 0 {
			s.busy = time.Now()
			if stream == command.StreamStderr {
				s.stderr += int64(took)
			} else {
				s.stdout += int64(took)
			}
			s.poke()
		}
		if n == len(p) {
			return n, nil
		}
		if s.ctx.Err() != nil {
			return n, s.cause()
		}
		s.changed.Wait()
	}
}

// Stream is Write for one stream.
func (s *Session) Stream(stream command.Stream) io.Writer { return streamWriter{s, stream} }

type streamWriter struct {
	s      *Session
	stream command.Stream
}

func (w streamWriter) Write(p []byte) (int, error) { return w.s.Write(w.stream, p) }

// WaitCredit waits until output would be taken in: a source that costs memory to
// read asks first.
func (s *Session) WaitCredit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.out.room() == 0 {
		if s.ctx.Err() != nil {
			return s.cause()
		}
		s.changed.Wait()
	}
	return nil
}

// Notice tells the caller, in words, of something that output does not show.
func (s *Session) Notice(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.notices) < maxNotices {
		s.notices = append(s.notices, text)
		s.tellLocked()
	}
}

const maxNotices = 16 // that wait to be sent

func (s *Session) tellLocked() {
	s.tell = true
	s.poke()
}

func (s *Session) controlled() {
	select {
	case s.controls <- struct{}{}:
	default:
	}
}

// poke wakes the pump.
func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Serve runs the source and returns at once. done is called when the source has
// ended, before the caller learns of it.
func (s *Session) Serve(source func(ctx context.Context) Result, done func(Ended)) {
	s.m.wg.Go(func() {
		defer s.m.remove(s)
		pumped := make(chan struct{})
		go func() { // ends when the end is acknowledged, or nobody is there to do so
			defer close(pumped)
			s.pump()
		}()
		stop := context.AfterFunc(s.ctx, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		})
		defer stop()
		s.finish(s.run(source), done)
		<-pumped
	})
}

// run runs the source. One that panics ends its session and nothing else.
func (s *Session) run(source func(context.Context) Result) (r Result) {
	defer func() {
		if p := recover(); p != nil {
			s.m.o.Log.Error("a session panicked", "request_id", s.open.RequestID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			r = Result{Err: command.NewError(command.KindInternal, "the agent failed to serve the session; its log says why")}
		}
	}()
	return source(s.ctx)
}

// Abort gives up a session that was not served.
func (s *Session) Abort() {
	s.cancel(ErrCancelled)
	s.m.remove(s)
}

// finish puts the end behind the output.
func (s *Session) finish(r Result, done func(Ended)) {
	s.mu.Lock()
	e := Ended{Result: r, Reason: command.EndEOF, Duration: time.Since(s.began)}
	e.Bytes = command.AuditBytes{Stdin: s.in.received, Stdout: s.stdout, Stderr: s.stderr}
	s.mu.Unlock()
	switch cause := s.cause(); {
	case cause == nil, errors.Is(cause, context.Canceled), errors.Is(cause, ErrTimeout):
	case errors.Is(cause, ErrCancelled):
		e.Reason = command.EndCancelled
	case errors.Is(cause, ErrLeaseExpired):
		e.Reason = command.EndLeaseExpired
	case errors.Is(cause, ErrMaxDuration), errors.Is(cause, ErrIdle):
		e.Err = command.NewError(command.KindDenied, "%v", cause)
	case errors.Is(cause, ErrStopping):
		e.Err = command.NewError(command.KindBusy, "the agent stops; try again when it is back")
	default:
		e.Err = command.NewError(command.KindBadRequest, "%v", cause)
	}
	if e.Err != nil {
		e.Reason = command.EndError
	}
	if done != nil {
		done(e)
	}
	end := command.SessionEnd{ExitCode: e.ExitCode, Bytes: command.SessionBytes{Stdout: e.Bytes.Stdout, Stderr: e.Bytes.Stderr}}
	if e.Err != nil {
		end.Error = &command.ErrorDetail{Kind: e.Err.Kind, Message: cut(e.Err.Message, command.MaxMessage), RequestID: s.open.RequestID}
	}
	payload, err := json.Marshal(end)
	if err != nil {
		panic(err) // numbers and strings always marshal
	}
	s.mu.Lock()
	s.out.end(e.Reason, payload)
	s.ended = time.Now()
	s.mu.Unlock()
	s.poke()
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// control takes what the verified caller says. It never waits.
func (s *Session) control(op command.SessionOp, header map[string][]string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	switch op {
	case command.OpCredit:
		c, err := command.DecodeSession[command.Credit](data)
		before := s.out.ackSeq
		if err != nil || !s.out.grant(c.Ack, c.Credit, s.window) {
			s.cancel(errProtocol)
			return
		}
		if s.out.ackSeq > before {
			s.moved = s.heard
		}
		s.resend = s.resend || c.Resend
		s.changed.Broadcast()
		s.poke()
	case command.OpIn, command.OpEOF:
		seq, err := command.ControlSeq(header)
		if err != nil || seq == 0 || len(data) > command.MaxChunk || !s.in.take(seq, data, op == command.OpEOF) {
			s.cancel(errProtocol)
			return
		}
		s.busy = s.heard
		if s.in.gap {
			s.tellLocked()
		}
		s.changed.Broadcast()
	case command.OpResize, command.OpSignal:
		seq, err := command.ControlSeq(header)
		if err != nil || !s.orders.first(seq) {
			return // a copy, which came by another connection
		}
		s.orderLocked(op, seq, data)
	case command.OpCancel:
		s.cancel(ErrCancelled)
	}
}

// orderLocked takes a resize or a signal for the process.
func (s *Session) orderLocked(op command.SessionOp, seq uint64, data []byte) {
	if op == command.OpResize {
		if r, err := command.DecodeSession[command.Resize](data); err == nil && (seq == 0 || seq > s.sized) {
			s.resize, s.sized = &r, seq
			s.controlled()
		}
		return
	}
	if sig, err := command.DecodeSession[command.Signal](data); err == nil && len(s.signals) < maxSignals {
		s.signals = append(s.signals, sig)
		s.controlled()
	}
}

// ID is the session's id, a secret of its caller.
func (s *Session) ID() string { return s.key.id }

// UID is the uid of the verified caller.
func (s *Session) UID() string { return s.key.uid }

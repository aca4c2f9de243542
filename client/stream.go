package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// Times of a stream. Variables, so that tests need not wait for them.
var (
	keepalive   = command.SessionKeepalive
	silence     = command.SessionLease // nothing heard of the device for so long: it is gone
	askAgain    = time.Second          // before a resend is asked for once more
	cancelGrace = 2 * time.Second      // for the device to end a session that was cancelled
)

// Bounds of a window, in bytes.
const (
	MinStreamWindow = 2 * command.MaxChunk
	MaxStreamWindow = 64 << 20
)

// stream is the caller's end of a session. Messages come in on the
// subscription's callback, which never waits: what the writer has not taken yet
// is held here, at most a window of it, and the device is told to send more only
// as the writer takes it.
type stream struct {
	c       *Client
	verb    command.Verb
	device  string
	id      string
	uid     string
	window  int64
	reqID   string
	sub     *nats.Subscription
	subject string
	shared  string // of the subscription of a whole job; empty: the stream has its own
	notice  func(string)
	mayRun  bool // the device has, or may have, the session
	part    part // of a job; zero: of none

	arrived chan struct{} // something for copy to look at
	over    chan struct{} // closed by close
	closing sync.Once
	tending sync.WaitGroup
	input   input
	orders  atomic.Uint64 // resizes and signals sent

	mu       sync.Mutex
	queue    []piece
	held     int64 // bytes in queue
	next     uint64
	received int64 // bytes, from the beginning
	streams  command.SessionBytes
	told     grant // what the device was last told
	join     joint // to a session that an earlier run of a job opened
	heard    time.Time
	gap      time.Time // since when something is missing; zero: nothing is
	asked    time.Time // when it was last asked for again
	end      *command.SessionEnd
	reason   command.EndReason
	err      *command.Error
}

// piece is output that waits for the writer.
type piece struct {
	stream command.Stream
	data   []byte
}

// grant is the state of flow control as the device knows it.
type grant struct {
	ack      uint64
	received int64 // bytes up to ack
	limit    int64 // bytes that the device may send in all
}

// openStream subscribes to a session's output. What follows is start or close.
func (c *Client) openStream(verb command.Verb, device string, window, standard int64, notice func(string)) (*stream, *command.Error) {
	s, err := c.newStream(verb, device, window, standard, notice)
	if err != nil {
		return nil, err
	}
	if !c.streams.add(s) {
		return nil, fault(command.OutcomeFailed, ErrClosed, "not sent")
	}
	var subErr error
	if s.sub, subErr = c.nc.Subscribe(s.subject, s.onMsg); subErr != nil {
		c.streams.remove(s)
		return nil, natsFault(subErr, "the session's output cannot be subscribed to")
	}
	// A device that sends more than it may is ended by onMsg, which cannot look
	// faster than this fills.
	_ = s.sub.SetPendingLimits(1<<16, int(2*s.window+1<<20))
	return s, nil
}

// newStream makes a stream that gets nothing yet.
func (c *Client) newStream(verb command.Verb, device string, window, standard int64, notice func(string)) (*stream, *command.Error) {
	if err := checkDevice(device); err != nil {
		return nil, err
	}
	if window == 0 {
		window = standard
	}
	if window < MinStreamWindow || window > MaxStreamWindow {
		return nil, fault(command.OutcomeRejected, nil, "window of %d bytes: want %d to %d", window, MinStreamWindow, MaxStreamWindow)
	}
	uid, err := c.uid()
	if err != nil {
		return nil, err
	}
	if err := c.ready(); err != nil {
		return nil, err
	}
	s := &stream{
		c: c, verb: verb, device: device, id: command.NewSessionID(), uid: uid, window: window, reqID: command.NewRequestID(), notice: notice,
		arrived: make(chan struct{}, 1), over: make(chan struct{}), next: 1, heard: time.Now(), told: grant{limit: window},
	}
	s.input.init(s)
	s.subject = command.SessionSubject(device, uid, s.id)
	return s, nil
}

// uid is the caller's own, as its inbox prefix has it: the only one under which
// the broker lets it subscribe.
func (c *Client) uid() (string, *command.Error) {
	const base = "_INBOX."
	prefix := c.nc.Opts.InboxPrefix
	if len(prefix) > len(base) && prefix[:len(base)] == base && command.IsUID(prefix[len(base):]) {
		return prefix[len(base):], nil
	}
	return "", fault(command.OutcomeRejected, nil, "the connection's inbox prefix %.80q is not that of a user; connect with nats.CustomInboxPrefix(command.InboxPrefix(uid)), uid being that of the user who signs in", prefix)
}

func (s *stream) session() *command.Session {
	return &command.Session{ID: s.id, Credit: s.window}
}

// start asks the device for the session. On an error the stream is closed.
func (s *stream) start(ctx context.Context, request any) *command.Error {
	err := s.ask(ctx, request)
	// The device may have begun all the same where no answer came.
	s.mayRun = err == nil || (err.Kind == "" && (err.Outcome == command.OutcomeTimeout || err.Outcome == command.OutcomeFailed))
	if err != nil {
		s.close()
		return err
	}
	s.mu.Lock()
	s.heard = time.Now()
	s.mu.Unlock()
	s.tending.Go(s.tend)
	return nil
}

func (s *stream) ask(ctx context.Context, request any) *command.Error {
	payload, err := json.Marshal(request)
	if err != nil {
		return fault(command.OutcomeRejected, err, "the request cannot be encoded")
	}
	header, timeout := s.part.header(s.reqID, s.c.opts.Timeout)
	if s.verb.Changes() && header.Instance == "" {
		var failed *command.Error
		if header.Instance, failed = s.c.instance(ctx, s.device); failed != nil {
			return of(failed, s.verb, s.device, "")
		}
	}
	a, failed := s.c.do(ctx, s.verb, s.device, payload, header, timeout)
	if failed != nil {
		return failed
	}
	s.part.noteReply(a)
	reply, failed := decode[command.SessionReply](a, s.verb, s.device)
	if failed == nil && reply.Session != s.id {
		failed = of(fault(command.OutcomeFailed, fmt.Errorf("%w: it is of another session", ErrBadReply), ""), s.verb, s.device, s.reqID)
	}
	if s.failed() != nil { // the broker refused the subscription meanwhile
		failed = s.failed()
	}
	return failed
}

// close lets go of the stream. It waits for what the stream started, except for
// a Read of standard input that does not return. It may be called more than once.
func (s *stream) close() {
	s.closing.Do(s.letGo)
	s.tending.Wait()
}

func (s *stream) letGo() {
	close(s.over)
	s.mu.Lock()
	ended := s.end != nil
	s.mu.Unlock()
	if s.mayRun && !ended {
		s.control(command.OpCancel, nil, nil) // nobody listens any more
	}
	_ = s.sub.Unsubscribe() // fails where the connection is closed, which is as good
	s.c.streams.remove(s)
	s.input.stop()
}

// fail ends the stream from this side; the first reason counts.
func (s *stream) fail(err *command.Error) {
	s.mu.Lock()
	if s.err == nil && s.end == nil {
		s.err = of(err, s.verb, s.device, s.reqID)
	}
	s.mu.Unlock()
	s.wake()
}

func (s *stream) failed() *command.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *stream) wake() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

// control sends one message of session control.
func (s *stream) control(op command.SessionOp, header nats.Header, data []byte) {
	msg := &nats.Msg{Subject: command.SessionControlSubject(s.device, s.uid, s.id, op), Header: header, Data: data}
	if err := s.c.nc.PublishMsg(msg); err != nil {
		s.c.log.Debug("session control could not be sent", "verb", s.verb, "device_id", s.device, "op", op, "error", err)
	}
}

func (s *stream) controlJSON(op command.SessionOp, header nats.Header, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // numbers and strings always marshal
	}
	s.control(op, header, data)
}

// order sends a resize or a signal, with the next number: the device may get it
// twice, while it changes connections, and acts once.
func (s *stream) order(op command.SessionOp, v any) {
	h := nats.Header{}
	command.WriteSeq(h, s.orders.Add(1))
	s.controlJSON(op, h, v)
}

// onMsg takes a message of the session in.
func (s *stream) onMsg(msg *nats.Msg) {
	if foreign(msg.Header) {
		return
	}
	chunk, err := command.ReadChunk(msg.Header)
	if err != nil || len(msg.Data) > command.MaxChunk {
		s.fail(fault(command.OutcomeFailed, fmt.Errorf("%w: %v", ErrBadReply, err), "the device broke the protocol of sessions"))
		return
	}
	s.mu.Lock()
	s.heard = time.Now()
	if chunk.Stream == command.StreamProgress {
		s.join.answered()
		s.mu.Unlock()
		s.onProgress(msg.Data)
		return
	}
	if !s.join.takes(chunk.Seq, &s.next) {
		s.mu.Unlock()
		return
	}
	switch {
	case s.err != nil || s.end != nil:
		s.mu.Unlock() // late
		return
	case chunk.Seq < s.next:
		s.copyLocked(chunk.Seq)
		return
	case chunk.Seq > s.next:
		s.missingLocked()
		return
	case chunk.End == "" && s.held+int64(len(msg.Data)) > s.window:
		s.mu.Unlock()
		s.fail(fault(command.OutcomeFailed, ErrBadReply, "the device sends more than it was allowed to"))
		return
	}
	s.next++
	s.gap = time.Time{}
	if chunk.End != "" {
		end, err := command.DecodeSession[command.SessionEnd](msg.Data)
		if err != nil || (end.Bytes != s.streams && !s.join.joined) {
			s.err = of(fault(command.OutcomeFailed, ErrBadReply, "the end of the session does not tally with what came: %d and %d bytes of %d and %d",
				s.streams.Stdout, s.streams.Stderr, end.Bytes.Stdout, end.Bytes.Stderr), s.verb, s.device, s.reqID)
		} else {
			s.end, s.reason = &end, chunk.End
		}
		s.creditLocked(false) // the device may forget the session
		s.wake()
		return
	}
	n := int64(len(msg.Data))
	s.enqueue(chunk.Stream, msg.Data)
	s.held += n
	s.received += n
	if chunk.Stream == command.StreamStderr {
		s.streams.Stderr += n
	} else {
		s.streams.Stdout += n
	}
	if s.received-s.told.received >= s.window/2 || s.next-1-s.told.ack >= command.MaxUnacked/4 {
		s.creditLocked(false)
	} else {
		s.mu.Unlock()
	}
	s.wake()
}

// foreign tells whether a message was not published by the device as output:
// the broker does not check reply subjects, so that whoever knew the session's id
// could have an answer delivered here. An answer has none of the headers, or one
// of the broker's.
func foreign(h nats.Header) bool {
	ours := false
	for name := range h {
		if len(name) >= 5 && strings.EqualFold(name[:5], "Nats-") {
			return true
		}
		ours = ours || name == command.HeaderStream || name == command.HeaderEnd
	}
	return !ours
}

// enqueue keeps output for the reader. Small chunks are copied, into one piece
// where they are of one stream: each would keep a whole message, with whatever
// headers the device gave it, and only its bytes are bounded by the window.
func (s *stream) enqueue(of command.Stream, data []byte) {
	if len(data) >= command.MaxChunk/2 {
		s.queue = append(s.queue, piece{of, data})
		return
	}
	if n := len(s.queue); n > 0 && s.queue[n-1].stream == of && len(s.queue[n-1].data)+len(data) <= command.MaxChunk/2 {
		s.queue[n-1].data = append(s.queue[n-1].data, data...)
		return
	}
	s.queue = append(s.queue, piece{of, bytes.Clone(data)})
}

// copyLocked answers a chunk that came before: the device sends it again since it
// does not know that it came. Its acknowledgement was lost, and with it perhaps
// the credit that the device waits for. One answer is enough for a row of copies,
// and the last of them is the one that cannot be spared. It unlocks.
func (s *stream) copyLocked(seq uint64) {
	if seq == s.next-1 {
		s.creditLocked(false)
		return
	}
	s.mu.Unlock()
}

// missingLocked notes that something is missing and asks for it. It unlocks.
func (s *stream) missingLocked() {
	now := time.Now()
	if s.join.anywhere {
		s.mu.Unlock() // what it begins with is not known
		return
	}
	if s.gap.IsZero() {
		s.gap = now
	}
	if now.Sub(s.asked) < askAgain {
		s.mu.Unlock()
		return
	}
	s.asked = now
	s.creditLocked(true)
}

// creditLocked tells the device what came and how much more may. It unlocks.
func (s *stream) creditLocked(resend bool) {
	c := command.Credit{Ack: s.next - 1, Credit: s.window - s.held, Resend: resend}
	s.told = grant{ack: c.Ack, received: s.received, limit: s.received + c.Credit}
	s.mu.Unlock()
	s.controlJSON(command.OpCredit, nil, c)
}

func (s *stream) onProgress(data []byte) {
	p, err := command.DecodeSession[command.Progress](data)
	if err != nil {
		return // the next one may be better; without any the stream ends
	}
	if p.Notice != "" && s.notice != nil {
		s.notice(command.Printable(p.Notice))
	}
	s.input.progress(p)
	s.mu.Lock()
	switch {
	case s.err != nil || s.end != nil:
		s.mu.Unlock()
	case p.Sent >= s.next:
		s.missingLocked()
	default:
		s.creditLocked(false) // what it was told last may be lost: it may have reconnected
	}
}

// resume follows a reconnect: what came meanwhile is lost.
func (s *stream) resume() {
	s.mu.Lock()
	if s.end != nil {
		s.mu.Unlock()
		return
	}
	s.heard = time.Now() // nothing could be heard before
	s.asked = s.heard
	s.creditLocked(true)
	s.input.resend()
}

// tend keeps the session alive and notices when the device is gone.
func (s *stream) tend() {
	tick := time.NewTicker(min(keepalive, silence) / 8)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-s.over:
			return
		case now := <-tick.C:
			s.mu.Lock()
			quiet, missing := now.Sub(s.heard), time.Duration(0)
			if !s.gap.IsZero() {
				missing = now.Sub(s.gap)
			}
			done := s.end != nil || s.err != nil
			switch {
			case done:
				s.mu.Unlock()
			case quiet >= silence:
				s.mu.Unlock()
				s.fail(fault(command.OutcomeTimeout, nil, "nothing was heard of the session for %v", round(quiet)))
			case missing >= silence:
				s.mu.Unlock()
				s.fail(fault(command.OutcomeFailed, ErrBadReply, "a part of the output is missing, and the device does not send it again"))
			case missing > 0:
				s.missingLocked()
			case now.Sub(last) >= keepalive-keepalive/8:
				last = now
				s.creditLocked(false)
			default:
				s.mu.Unlock()
			}
		}
	}
}

// copy hands output to write, in order, until the session has ended. A context
// that ends, or a writer that fails, cancels the session.
func (s *stream) copy(ctx context.Context, write func(command.Stream, []byte) error) (command.SessionEnd, *command.Error) {
	var pieces []piece
	for {
		s.mu.Lock()
		pieces, s.queue = s.queue, pieces[:0]
		end, err := s.end, s.err
		s.mu.Unlock()
		for i, p := range pieces {
			if ctx.Err() != nil {
				return s.cancelled(givenUp(ctx))
			}
			if failed := write(p.stream, p.data); failed != nil {
				return s.cancelled(fault(command.OutcomeFailed, failed, "the output could not be written"))
			}
			pieces[i] = piece{}
			s.took(int64(len(p.data)))
		}
		switch {
		case len(pieces) > 0:
			continue
		case end != nil:
			return *end, s.endFault(*end)
		case err != nil:
			return command.SessionEnd{}, err
		}
		select {
		case <-s.arrived:
		case <-ctx.Done():
			return s.cancelled(givenUp(ctx))
		}
	}
}

// givenUp is the outcome of a session that the caller ended.
func givenUp(ctx context.Context) *command.Error {
	err := contextFault(ctx, true)
	err.Message = "the session was given up"
	return err
}

// took notes that the writer took n bytes.
func (s *stream) took(n int64) {
	s.mu.Lock()
	s.held -= n
	if s.end == nil && s.received+s.window-s.held-s.told.limit >= s.window/2 {
		s.creditLocked(false)
		return
	}
	s.mu.Unlock()
}

// cancelled cancels the session and waits a little for its end, which says what
// became of the process.
func (s *stream) cancelled(err *command.Error) (command.SessionEnd, *command.Error) {
	s.control(command.OpCancel, nil, nil)
	limit := time.NewTimer(cancelGrace)
	defer limit.Stop()
	for {
		s.mu.Lock()
		n := s.held
		s.queue, s.held = nil, 0
		end, failed := s.end, s.err
		if n > 0 && end == nil {
			s.creditLocked(false)
		} else {
			s.mu.Unlock()
		}
		switch {
		case end != nil:
			return *end, of(err, s.verb, s.device, s.reqID)
		case failed != nil:
			return command.SessionEnd{}, of(err, s.verb, s.device, s.reqID)
		}
		select {
		case <-s.arrived:
		case <-limit.C:
			return command.SessionEnd{}, of(err, s.verb, s.device, s.reqID)
		}
	}
}

// endFault is what an end other than that of the source means.
func (s *stream) endFault(end command.SessionEnd) *command.Error {
	var err *command.Error
	switch {
	case end.Error != nil:
		err = command.NewError(end.Error.Kind, "%s", command.Printable(end.Error.Message))
	case s.reason == command.EndEOF:
		return nil
	case s.reason == command.EndLeaseExpired:
		err = fault(command.OutcomeFailed, ErrNATS, "the device ended the session because it heard nothing of the caller for %v", command.SessionLease)
	default:
		err = fault(command.OutcomeFailed, nil, "the session was ended: %s", s.reason)
	}
	return of(err, s.verb, s.device, s.reqID)
}

// unknownEnd is the outcome of a process that started and whose session was
// lost: it may be running.
func unknownEnd(err *command.Error, ctx context.Context) *command.Error {
	if err == nil || err.Kind != "" || err.Outcome == command.OutcomeRejected || ctx.Err() != nil {
		return err
	}
	lost := *err
	lost.Outcome, lost.Err = command.OutcomeStartedNoResult, errors.Join(err.Err)
	lost.Message = "it started and its end is not known; ask for the result of request " + err.RequestID + ": " + err.Message
	return &lost
}

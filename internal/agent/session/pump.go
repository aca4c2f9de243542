package session

import (
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// pump sends what is taken in, in order, until the end has been acknowledged.
func (s *Session) pump() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var on connection
	for {
		now := time.Now()
		if s.over(now) {
			return
		}
		// What was sent on another connection, or before this one broke, may be lost.
		nc := s.m.o.Conn()
		if at := lifeOf(nc); at != on {
			on = at
			s.mu.Lock()
			s.out.rewind()
			s.tell = true // what the caller said may be lost too; it answers
			s.nextTry = time.Time{}
			s.mu.Unlock()
		}
		if nc != nil && s.send(nc, now) {
			continue
		}
		timer.Reset(s.wait(now))
		select {
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// connection is one life of a connection.
type connection struct {
	nc         *nats.Conn
	reconnects uint64
}

func lifeOf(nc *nats.Conn) connection {
	if nc == nil {
		return connection{}
	}
	return connection{nc, nc.Stats().Reconnects}
}

// over tells whether the pump has no more to do, and ends what has lasted too
// long.
func (s *Session) over(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.m.o
	switch {
	case now.Sub(s.heard) >= o.Lease:
		s.cancel(ErrLeaseExpired)
	case s.open.Timeout > 0 && now.Sub(s.began) >= s.open.Timeout:
		s.cancel(ErrTimeout)
	case s.open.MaxDuration > 0 && now.Sub(s.began) >= s.open.MaxDuration:
		s.cancel(ErrMaxDuration)
	case s.open.IdleTimeout > 0 && now.Sub(s.busy) >= s.open.IdleTimeout:
		s.cancel(ErrIdle)
	}
	if s.ended.IsZero() {
		return false
	}
	sent := s.out.sent == len(s.out.chunks)
	switch {
	case len(s.out.chunks) == 0:
		return true
	case now.Sub(s.heard) >= o.Lease: // nobody is there to acknowledge; the end went out once
		return sent || now.Sub(s.heard) >= 2*o.Lease
	case s.m.stopping.Load():
		return sent || now.Sub(s.ended) >= stopGrace
	case now.Sub(later(s.ended, s.moved)) >= o.Lease:
		return true // the caller is there, and acknowledges nothing: it keeps the place no longer
	}
	return false
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// send sends one message, if one is due.
func (s *Session) send(nc *nats.Conn, now time.Time) bool {
	s.mu.Lock()
	if now.Before(s.nextTry) {
		s.mu.Unlock()
		return false
	}
	if s.resend && now.Sub(s.resent) >= resendEvery {
		s.resend, s.resent, s.tell = false, now, true
		s.out.rewind()
	}
	msg := &nats.Msg{Subject: s.subject, Header: nats.Header{}}
	if s.tell || now.Sub(s.sentAt) >= s.m.o.Keepalive {
		s.tell = false
		p := s.in.progress()
		p.Sent = s.out.sentSeq
		if len(s.notices) > 0 {
			p.Notice = s.notices[0]
			s.notices = s.notices[1:]
			s.tell = len(s.notices) > 0
		}
		s.mu.Unlock()
		data, err := json.Marshal(p)
		if err != nil {
			panic(err) // numbers and strings always marshal
		}
		msg.Data = data
		command.Chunk{Stream: command.StreamProgress}.Write(msg.Header)
		return s.sent(nc.PublishMsg(msg), now)
	}
	c, ok := s.out.next()
	s.mu.Unlock()
	if !ok {
		return false
	}
	msg.Data = c.data
	command.Chunk{Seq: c.seq, Stream: c.stream, End: c.end}.Write(msg.Header)
	err := nc.PublishMsg(msg)
	s.mu.Lock()
	c.block.release()
	s.mu.Unlock()
	return s.sent(err, now)
}

// sent notes the fate of a message. Without a connection it is tried again when
// there is one, or after a while.
func (s *Session) sent(err error, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.out.rewind()
		s.nextTry = now.Add(sendRetry)
		return false
	}
	s.sentAt = now
	return true
}

const (
	sendRetry = 250 * time.Millisecond
	stopGrace = time.Second // for the end to go out when the agent stops
	// resendEvery is how often at most a caller gets everything again that it did not
	// acknowledge: a few bytes of its would else cost a whole window each.
	resendEvery = 250 * time.Millisecond
)

// wait is how long the pump has nothing to do by itself.
func (s *Session) wait(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := now.Add(s.m.o.Keepalive)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	sooner(s.sentAt.Add(s.m.o.Keepalive))
	sooner(s.heard.Add(s.m.o.Lease))
	sooner(s.nextTry)
	if s.resend {
		sooner(s.resent.Add(resendEvery))
	}
	if !s.ended.IsZero() {
		sooner(later(s.ended, s.moved).Add(s.m.o.Lease))
	}
	if s.m.stopping.Load() {
		sooner(now.Add(sendRetry))
	}
	if s.open.Timeout > 0 {
		sooner(s.began.Add(s.open.Timeout))
	}
	if s.open.MaxDuration > 0 {
		sooner(s.began.Add(s.open.MaxDuration))
	}
	if s.open.IdleTimeout > 0 {
		sooner(s.busy.Add(s.open.IdleTimeout))
	}
	return max(time.Millisecond, next.Sub(now))
}

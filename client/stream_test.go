package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// session is a device's end of a session that a test plays by hand.
type session struct {
	nc      *nats.Conn
	subject string
	over    chan struct{} // closed when the caller cancels, or the test ends
}

func (s *session) say(c command.Chunk, data []byte) {
	msg := &nats.Msg{Subject: s.subject, Header: nats.Header{}, Data: data}
	c.Write(msg.Header)
	_ = s.nc.PublishMsg(msg)
}

func (s *session) out(seq uint64, text string) {
	s.say(command.Chunk{Seq: seq, Stream: command.StreamStdout}, []byte(text))
}

func (s *session) end(seq uint64, reason command.EndReason, end command.SessionEnd) {
	data, err := json.Marshal(end)
	if err != nil {
		panic(err)
	}
	s.say(command.Chunk{Seq: seq, End: reason}, data)
}

func (s *session) progress(p command.Progress) {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	s.say(command.Chunk{Stream: command.StreamProgress}, data)
}

// playing is a device that accepts each session and then does what play says.
func (f *fleet) playing(play func(*session)) *client.Client {
	f.t.Helper()
	nc := f.device()
	over := make(chan struct{})
	var playing sync.WaitGroup
	f.t.Cleanup(playing.Wait)
	f.t.Cleanup(func() { close(over) })
	f.listen(nc, "d", func(m *nats.Msg) *nats.Msg {
		target, err := command.ParseSubject(m.Subject)
		if err != nil {
			return nil
		}
		if target.Verb == "" {
			return nil // the device does as it likes
		}
		var request struct{ Session command.Session }
		if err := json.Unmarshal(m.Data, &request); err != nil {
			return refuse(command.KindBadRequest)(m)
		}
		s := &session{
			nc: nc, over: over,
			subject: command.SessionSubject("d", command.UID(broker.UserOps), request.Session.ID),
		}
		data, _ := json.Marshal(command.SessionReply{Session: request.Session.ID})
		_ = m.Respond(data)
		playing.Go(func() { play(s) })
		return nil
	})
	return f.client(f.ops(), client.Options{})
}

func whole(text string) command.SessionEnd {
	return command.SessionEnd{Bytes: command.SessionBytes{Stdout: int64(len(text))}}
}

// Whatever a device does, the caller has all of the output or an error.
func TestNoShortReadOfADeviceThatMisbehaves(t *testing.T) {
	defer client.SetStreamTimes(20*time.Millisecond, 200*time.Millisecond)()
	for name, tc := range map[string]struct {
		play func(*session)
		want error // nil: "ab" was read
		says string
	}{
		"as it should": {func(s *session) {
			s.out(1, "a")
			s.out(2, "b")
			s.end(3, command.EndEOF, whole("ab"))
		}, nil, ""},
		"twice, and late": {func(s *session) {
			s.out(1, "a")
			s.out(1, "a")
			s.out(2, "b")
			s.out(1, "a")
			s.end(3, command.EndEOF, whole("ab"))
			s.out(4, "c")
		}, nil, ""},
		"among what is not of the session": {func(s *session) {
			s.out(1, "a")
			_ = s.nc.PublishMsg(&nats.Msg{Subject: s.subject, Data: []byte("an answer")})
			_ = s.nc.PublishMsg(&nats.Msg{Subject: s.subject, Header: nats.Header{command.HeaderError: {"denied"}}})
			forged := &nats.Msg{Subject: s.subject, Header: nats.Header{"Nats-Sequence": {"1"}}, Data: []byte("c")}
			command.Chunk{Seq: 2, Stream: command.StreamStdout}.Write(forged.Header)
			_ = s.nc.PublishMsg(forged)
			s.out(2, "b")
			s.end(3, command.EndEOF, whole("ab"))
		}, nil, ""},
		"again when asked": {func(s *session) {
			s.out(2, "b")
			s.out(1, "a")
			s.out(2, "b")
			s.end(3, command.EndEOF, whole("ab"))
		}, nil, ""},
		"silence":          {func(s *session) { s.out(1, "a") }, client.ErrTimeout, "nothing was heard"},
		"a gap that stays": {func(s *session) { s.out(1, "a"); repeatedly(s, func() { s.out(3, "c") }) }, client.ErrFailed, "is missing"},
		"a chunk lost at the end": {func(s *session) {
			s.out(1, "a")
			repeatedly(s, func() { s.progress(command.Progress{Sent: 2}) })
		}, client.ErrFailed, "is missing"},
		"fewer bytes than it says": {func(s *session) { s.out(1, "a"); s.end(2, command.EndEOF, whole("ab")) }, client.ErrBadReply, "tally"},
		"no number": {func(s *session) {
			_ = s.nc.PublishMsg(&nats.Msg{Subject: s.subject, Header: nats.Header{command.HeaderStream: {"stdout"}}})
		}, client.ErrBadReply, "protocol"},
		"an error": {func(s *session) {
			s.end(1, command.EndError, command.SessionEnd{Error: &command.ErrorDetail{Kind: command.KindDenied, Message: "by\x1bpolicy"}})
		}, client.ErrDenied, "by\uFFFDpolicy"},
		"the lease": {func(s *session) { s.end(1, command.EndLeaseExpired, whole("")) }, client.ErrNATS, "heard nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			c := f.playing(tc.play)
			var out bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := c.Logs(ctx, "d", client.LogsOptions{Container: "x", Stdout: &out, Window: client.MinStreamWindow})
			switch {
			case tc.want == nil && (err != nil || out.String() != "ab"):
				t.Errorf("%q, %v", out.String(), err)
			case tc.want != nil && (!errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("%v, want %v that says %q", err, tc.want, tc.says)
			}
		})
	}
}

// repeatedly calls say until the test ends.
func repeatedly(s *session, say func()) {
	for {
		select {
		case <-s.over:
			return
		case <-time.After(20 * time.Millisecond):
			say()
		}
	}
}

// What the caller said may be lost while the device changes connections: it says
// it again when the device sends copies, and when the device reports.
func TestACallerSaysAgainWhatItHas(t *testing.T) {
	for name, say := range map[string]func(*session){
		"a copy of the last chunk": func(s *session) { s.out(1, "a") },
		"a report":                 func(s *session) { s.progress(command.Progress{Sent: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			credits := make(chan command.Credit, 64)
			begin := make(chan struct{})
			c := f.playing(func(s *session) {
				sub, err := s.nc.Subscribe(command.Subscription("d"), func(m *nats.Msg) {
					if target, err := command.ParseSubject(m.Subject); err != nil || target.Op != command.OpCredit {
						return
					}
					if credit, err := command.DecodeSession[command.Credit](m.Data); err == nil {
						credits <- credit
					}
				})
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = sub.Unsubscribe() }()
				f.flush(s.nc)
				s.out(1, "a")
				<-begin
				say(s)
				<-s.over
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			arrived := make(chan struct{})
			var once sync.Once
			done := make(chan error, 1)
			go func() {
				done <- c.Logs(ctx, "d", client.LogsOptions{Container: "x", Stdout: writerFunc(func(p []byte) (int, error) {
					once.Do(func() { close(arrived) })
					return len(p), nil
				})})
			}()
			limit := time.NewTimer(command.SessionKeepalive / 2)
			defer limit.Stop()
			select {
			case <-arrived:
			case <-limit.C:
				t.Fatal("no output")
			}
			close(begin)
			select {
			case got := <-credits:
				if got.Ack != 1 || got.Resend {
					t.Errorf("it said %+v", got)
				}
			case <-limit.C:
				t.Error("it said nothing")
			}
			cancel()
			<-done
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Whoever closes a stream a second time, or at the same time, waits and is done.
func TestAStreamIsClosedOnce(t *testing.T) {
	f := newFleet(t)
	f.listen(f.device(), "d", func(m *nats.Msg) *nats.Msg { return nil })
	c := f.client(f.ops(), client.Options{})
	for range 2000 {
		if err := client.CloseStreamTogether(c, "d", 16); err != nil {
			t.Fatal(err)
		}
	}
}

package session

import (
	"strconv"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// Whatever a caller says, a session holds no more than it may, and never forgets
// what was not acknowledged.
func FuzzControl(f *testing.F) {
	f.Add("credit", uint64(0), []byte(`{"ack":1,"credit":100}`), "credit", uint64(0), []byte(`{"ack":18446744073709551615,"credit":-1}`))
	f.Add("in", uint64(1), []byte("abc"), "in", uint64(3), []byte("def"))
	f.Add("eof", uint64(1), []byte{}, "in", uint64(2), []byte("x"))
	f.Add("resize", uint64(0), []byte(`{"rows":1,"cols":65535}`), "signal", uint64(0), []byte(`{"name":"\u0000"}`))
	f.Fuzz(func(t *testing.T, op1 string, seq1 uint64, data1 []byte, op2 string, seq2 uint64, data2 []byte) {
		m := New(Options{Device: "d", Conn: func() *nats.Conn { return nil }, MaxWindow: 1 << 16})
		defer m.Close()
		s, err := m.Open(Open{UID: "u", Session: command.Session{ID: command.NewSessionID(), Credit: 1000}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Abort()
		s.mu.Lock()
		s.out.append(command.StreamStdout, make([]byte, 900))
		c, _ := s.out.next()
		c.block.release()
		s.mu.Unlock()
		for range 3 {
			s.control(command.SessionOp(op1), map[string][]string{command.HeaderSeq: {strconv.FormatUint(seq1, 10)}}, data1)
			s.control(command.SessionOp(op2), map[string][]string{command.HeaderSeq: {strconv.FormatUint(seq2, 10)}}, data2)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch o, in := &s.out, &s.in; {
		case o.limit > o.acked+1<<16, o.limit < 1000:
			t.Fatalf("the limit is %d with %d acknowledged", o.limit, o.acked)
		case o.acked != 0 && (o.acked != 900 || len(o.chunks) != 0), o.sent > len(o.chunks):
			t.Fatalf("%d bytes acknowledged, %d chunks left, %d of them sent", o.acked, len(o.chunks), o.sent)
		case len(in.held) > command.InputWindow, len(s.signals) > maxSignals:
			t.Fatalf("input %+v, %d signals", in, len(s.signals))
		}
	})
}

package session

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

func TestOrders(t *testing.T) {
	for name, c := range map[string]struct {
		come  []uint64
		first []bool
	}{
		"in order":                  {[]uint64{1, 2, 3}, []bool{true, true, true}},
		"each twice":                {[]uint64{1, 1, 2, 2}, []bool{true, false, true, false}},
		"two rows":                  {[]uint64{1, 2, 3, 1, 2, 3}, []bool{true, true, true, false, false, false}},
		"the later connection goes": {[]uint64{2, 3, 1, 2, 3, 1}, []bool{true, true, true, false, false, false}},
		"far ahead":                 {[]uint64{1, 66, 2, 1, 200, 136, 135}, []bool{true, true, true, false, true, true, false}},
		"just within":               {[]uint64{1, 65, 1, 2}, []bool{true, true, false, true}},
		"the highest":               {[]uint64{1<<64 - 1, 1, 1<<64 - 1, 1<<64 - 2}, []bool{true, false, false, true}},
		"without numbers":           {[]uint64{0, 0, 1, 0, 1}, []bool{true, true, true, true, false}},
	} {
		var o orders
		var got []bool
		for _, n := range c.come {
			got = append(got, o.first(n))
		}
		if !slices.Equal(got, c.first) {
			t.Errorf("%s: %v is %v, want %v", name, c.come, got, c.first)
		}
	}
}

func FuzzOrders(f *testing.F) {
	f.Add([]byte{1, 2, 3, 1, 2, 3})
	f.Add([]byte{1, 66, 2, 255, 0, 0, 191})
	f.Fuzz(func(t *testing.T, come []byte) {
		var o orders
		seen := map[uint64]bool{}
		for _, b := range come {
			n := uint64(b)
			got := o.first(n)
			if n != 0 && got && seen[n] {
				t.Fatalf("%d of %v was taken twice", n, come)
			}
			if n != 0 && !got && !seen[n] && n+64 >= o.last {
				t.Fatalf("%d of %v was not taken", n, come)
			}
			seen[n] = true
		}
	})
}

// opened is a session without a connection, whose source has not begun.
func opened(t *testing.T, o Options) (*Manager, *Session) {
	t.Helper()
	o.Device = "d"
	if o.Conn == nil {
		o.Conn = func() *nats.Conn { return nil }
	}
	m := New(o)
	s, err := m.Open(Open{UID: "u", Session: command.Session{ID: command.NewSessionID(), Credit: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m, s
}

func (s *Session) say(t *testing.T, op command.SessionOp, seq uint64, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	header := map[string][]string{}
	if seq != 0 {
		header[command.HeaderSeq] = []string{strconv.FormatUint(seq, 10)}
	}
	s.control(op, header, data)
}

// While the agent has two connections each signal and resize comes twice.
func TestACopyOfASignalIsNone(t *testing.T) {
	_, s := opened(t, Options{})
	defer s.Abort()
	for range 2 { // by each connection
		s.say(t, command.OpSignal, 1, command.Signal{Name: "INT"})
		s.say(t, command.OpResize, 2, command.Resize{Rows: 1, Cols: 2})
		s.say(t, command.OpSignal, 4, command.Signal{Name: "TERM"})
	}
	s.say(t, command.OpResize, 5, command.Resize{Rows: 5, Cols: 5})
	s.say(t, command.OpResize, 3, command.Resize{Rows: 3, Cols: 3}) // late: another came since
	s.say(t, command.OpSignal, 0, command.Signal{Name: "HUP"})      // of an older client
	s.say(t, command.OpSignal, 0, command.Signal{Name: "HUP"})
	var names []string
	var size command.Resize
	for c, ok := s.NextControl(); ok; c, ok = s.NextControl() {
		if c.Resize != nil {
			size = *c.Resize
		} else {
			names = append(names, c.Signal.Name)
		}
	}
	if want := []string{"INT", "TERM", "HUP", "HUP"}; !slices.Equal(names, want) || size.Rows != 5 {
		t.Errorf("signals %v, want %v; size %+v", names, want, size)
	}
	// What is no number is no signal either.
	s.control(command.OpSignal, map[string][]string{command.HeaderSeq: {"1", "2"}}, []byte(`{"name":"INT"}`))
	s.control(command.OpSignal, map[string][]string{command.HeaderSeq: {"-1"}}, []byte(`{"name":"INT"}`))
	if c, ok := s.NextControl(); ok {
		t.Errorf("%+v", c)
	}
}

// A source that has ended does not keep its place for a caller that is there but
// acknowledges nothing.
func TestAnEndThatNobodyAcknowledgesIsGivenUp(t *testing.T) {
	const lease = 200 * time.Millisecond
	m, s := opened(t, Options{Lease: lease})
	s.Serve(func(context.Context) Result { _, _ = s.Write(command.StreamStdout, []byte("x")); return Result{} }, nil)
	stop := time.NewTimer(20 * time.Second)
	defer stop.Stop()
	alive := time.NewTicker(lease / 10)
	defer alive.Stop()
	began := time.Now()
	for m.Len() > 0 {
		select {
		case <-alive.C:
			s.say(t, command.OpCredit, 0, command.Credit{Credit: 1 << 20})
		case <-stop.C:
			t.Fatal("the session keeps its place")
		}
	}
	if d := time.Since(began); d < lease/2 {
		t.Errorf("it was given up after %v, before the lease of %v", d, lease)
	}
}

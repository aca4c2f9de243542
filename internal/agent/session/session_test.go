package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestOutputArrivesWhole(t *testing.T) {
	const size = 24<<20 + 17
	r := newRig(t, session.Options{}, send(size))
	var out checker
	if err := r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if out.len() != size {
		t.Errorf("%d bytes of %d", out.len(), size)
	}
	if e := r.awaitEnd(); e.Bytes.Stdout != size || e.Reason != command.EndEOF {
		t.Errorf("ended %+v", e)
	}
	testwait.For(t, patience, "the session to be forgotten", func() bool { return r.m.Len() == 0 })
}

// A session outlives a break of either connection, a renewal of the device's and
// a restart of the server, without a byte missing or twice there.
func TestOutputSurvivesBreaks(t *testing.T) {
	for name, disturb := range map[string]func(*rig){
		"the caller reconnects": func(r *rig) { r.must(r.ops.ForceReconnect()) },
		"the device reconnects": func(r *rig) { r.must(r.conn.Load().ForceReconnect()) },
		"the device renews its connection": func(r *rig) {
			old := r.conn.Load()
			r.connectDevice()
			r.m.Connected()
			old.Close()
		},
		"the server restarts": func(r *rig) {
			r.srv.Close()
			r.startServer()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 24 << 20
			r := newRig(t, session.Options{}, send(size))
			var out checker
			done := make(chan error, 1)
			go func() {
				done <- r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: &out})
			}()
			for i := range int64(3) {
				mark := (i + 1) * size / 5
				testwait.For(t, patience, "output", func() bool { return out.len() > mark || len(done) > 0 })
				disturb(r)
			}
			if err := within(t, done); err != nil {
				t.Fatal(err)
			}
			if out.len() != size {
				t.Errorf("%d bytes of %d", out.len(), size)
			}
		})
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func within[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(2 * patience):
		t.Fatal("it does not end")
		panic("unreachable")
	}
}

// gate is a writer that waits until it is opened.
type gate struct {
	io.Writer
	open    chan struct{}
	arrived atomic.Int64
}

func (g *gate) Write(p []byte) (int, error) {
	g.arrived.Add(1)
	<-g.open
	return g.Writer.Write(p)
}

// A reader that stands still makes the source stand still, no later than after
// one window; then nothing is missing.
func TestASlowReaderStopsTheSource(t *testing.T) {
	const window = 128 << 10
	const size = 8 << 20
	var read atomic.Int64
	stuck := make(chan struct{})
	var once sync.Once
	r := newRig(t, session.Options{Keepalive: 20 * time.Millisecond}, func(ctx context.Context, s *session.Session, _ command.LogsRequest) session.Result {
		p := &pattern{n: size}
		buf := make([]byte, 1000)
		for {
			n, err := p.Read(buf)
			if err != nil {
				return session.Result{}
			}
			waiting := time.AfterFunc(200*time.Millisecond, func() { once.Do(func() { close(stuck) }) })
			_, err = s.Write(command.StreamStdout, buf[:n])
			waiting.Stop()
			if err != nil {
				return session.Result{}
			}
			read.Add(int64(n))
		}
	})
	var out checker
	g := &gate{Writer: &out, open: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		done <- r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: g, Window: window})
	}()
	within(t, stuck)
	// Nothing was taken by the writer, so one window is all that may be anywhere.
	if n := read.Load(); n > window {
		t.Errorf("the source went on to %d bytes, with a window of %d", n, window)
	}
	close(g.open)
	if err := within(t, done); err != nil || out.len() != size {
		t.Errorf("%d bytes, %v", out.len(), err)
	}
}

// A caller that asks for everything again and again gets it a few times a second:
// each time costs the device a whole window.
func TestResendsAreBounded(t *testing.T) {
	const chunks, size = 8, command.MaxChunk
	r := newRig(t, session.Options{}, func(ctx context.Context, s *session.Session, _ command.LogsRequest) session.Result {
		_, _ = s.Write(command.StreamStdout, make([]byte, chunks*size))
		<-ctx.Done()
		return session.Result{}
	})
	id, uid := command.NewSessionID(), command.UID(broker.UserOps)
	got := make(chan *nats.Msg, 4096)
	sub, err := r.ops.ChanSubscribe(command.SessionSubject(device, uid, id), got)
	r.must(err)
	defer func() { _ = sub.Unsubscribe() }()
	request, err := json.Marshal(command.LogsRequest{Session: &command.Session{ID: id, Credit: chunks * size}, Container: "x", Stdout: true})
	r.must(err)
	_, err = r.ops.Request(command.Subject(device, command.VerbLogs), request, patience)
	r.must(err)
	control := func(op command.SessionOp, payload string) {
		r.must(r.ops.Publish(command.SessionControlSubject(device, uid, id, op), []byte(payload)))
	}
	stop := time.NewTimer(time.Second)
	defer stop.Stop()
	asks := time.NewTicker(time.Millisecond)
	defer asks.Stop()
	bytes, asked := 0, 0
	for on := true; on; {
		select {
		case msg := <-got:
			if msg.Header.Get(command.HeaderStream) == string(command.StreamStdout) {
				bytes += len(msg.Data)
			}
		case <-asks.C:
			asked++
			control(command.OpCredit, `{"ack":0,"credit":1,"resend":true}`)
		case <-stop.C:
			on = false
		}
	}
	if most := 6 * chunks * size; bytes > most || bytes < 2*chunks*size {
		t.Errorf("%d bytes came in a second in which they were asked for %d times, want %d to %d", bytes, asked, 2*chunks*size, most)
	}
	control(command.OpCancel, "")
	for end := false; !end; {
		end = within(t, got).Header.Get(command.HeaderEnd) != ""
	}
	control(command.OpCredit, fmt.Sprintf(`{"ack":%d,"credit":1}`, chunks+1))
	testwait.For(t, patience, "the session to be forgotten", func() bool { return r.m.Len() == 0 })
}

func TestStreamsAreKeptApart(t *testing.T) {
	r := newRig(t, session.Options{}, func(_ context.Context, s *session.Session, _ command.LogsRequest) session.Result {
		for range 1000 {
			_, _ = s.Write(command.StreamStdout, []byte("out\n"))
			_, _ = s.Write(command.StreamStderr, []byte("err\xff\n"))
		}
		return session.Result{}
	})
	var out, errs bytes.Buffer
	if err := r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: &out, Stderr: &errs}); err != nil {
		t.Fatal(err)
	}
	if out.String() != strings.Repeat("out\n", 1000) || errs.String() != strings.Repeat("err\xff\n", 1000) {
		t.Errorf("%d and %d bytes", out.Len(), errs.Len())
	}
	if e := r.awaitEnd(); e.Bytes.Stdout != 4000 || e.Bytes.Stderr != 5000 {
		t.Errorf("ended %+v", e)
	}
}

// wait is a source that ends only when it must.
func wait(ctx context.Context, s *session.Session, _ command.LogsRequest) session.Result {
	_, _ = s.Write(command.StreamStdout, []byte("ready"))
	<-ctx.Done()
	return session.Result{}
}

func TestCancelEndsTheSource(t *testing.T) {
	r := newRig(t, session.Options{}, wait)
	ctx, cancel := context.WithCancel(t.Context())
	err := r.c.Logs(ctx, device, client.LogsOptions{Container: "x", Stdout: writerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	})})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	if e := r.awaitEnd(); e.Reason != command.EndCancelled || e.Bytes.Stdout != 5 {
		t.Errorf("ended %+v", e)
	}
	testwait.For(t, patience, "the session to be forgotten", func() bool { return r.m.Len() == 0 })
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestAWriterThatFailsCancels(t *testing.T) {
	r := newRig(t, session.Options{}, send(1<<30))
	full := errors.New("disk full")
	err := r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: writerFunc(func([]byte) (int, error) { return 0, full })})
	if !errors.Is(err, full) {
		t.Errorf("err = %v", err)
	}
	if e := r.awaitEnd(); e.Reason != command.EndCancelled {
		t.Errorf("ended %+v", e)
	}
}

func TestASessionEndsWithItsLease(t *testing.T) {
	r := newRig(t, session.Options{Lease: 300 * time.Millisecond}, wait)
	nc := r.dial(broker.UserOps, "o", command.InboxPrefix(command.UID(broker.UserOps)))
	c := r.client(nc)
	done := make(chan error, 1)
	go func() {
		done <- c.Logs(context.Background(), device, client.LogsOptions{Container: "x", Stdout: writerFunc(func(p []byte) (int, error) {
			nc.Close() // the caller is gone, without a word
			return len(p), nil
		})})
	}()
	if err := within(t, done); !errors.Is(err, client.ErrNATS) {
		t.Errorf("err = %v", err)
	}
	if e := r.awaitEnd(); e.Reason != command.EndLeaseExpired {
		t.Errorf("ended %+v", e)
	}
	testwait.For(t, patience, "the session to be forgotten", func() bool { return r.m.Len() == 0 })
}

func TestPolicyBoundsASession(t *testing.T) {
	for name, o := range map[string]session.Open{
		"duration": {MaxDuration: 50 * time.Millisecond},
		"idleness": {IdleTimeout: 50 * time.Millisecond},
	} {
		m := session.New(session.Options{Device: device, Conn: func() *nats.Conn { return nil }, Lease: 200 * time.Millisecond})
		o.UID, o.Session = "u", command.Session{ID: command.NewSessionID(), Credit: 1}
		s, err := m.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan session.Ended, 1)
		s.Serve(func(ctx context.Context) session.Result { <-ctx.Done(); return session.Result{} }, func(e session.Ended) { ended <- e })
		e := within(t, ended)
		if e.Err == nil || e.Err.Kind != command.KindDenied || !strings.Contains(e.Err.Message, "policy") {
			t.Errorf("%s: ended %+v", name, e)
		}
		m.Close()
	}
}

func TestOpenIsBounded(t *testing.T) {
	m := session.New(session.Options{Device: device, Conn: func() *nats.Conn { return nil }, MaxSessions: 3, MaxPerCaller: 2})
	defer m.Close()
	id := command.NewSessionID()
	open := func(uid, id string, credit int64) (*session.Session, command.Kind) {
		t.Helper()
		s, err := m.Open(session.Open{UID: uid, Session: command.Session{ID: id, Credit: credit}})
		var e *command.Error
		if err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
		if e != nil {
			return nil, e.Kind
		}
		return s, ""
	}
	var all []*session.Session
	for _, c := range []struct {
		name, uid, id string
		credit        int64
		want          command.Kind
	}{
		{"the first", "a", id, 1, ""},
		{"the same id", "a", id, 1, command.KindBadRequest},
		{"the same id of another caller", "b", id, 1, ""},
		{"not an id", "b", "../x", 1, command.KindBadRequest},
		{"no credit", "b", command.NewSessionID(), 0, command.KindBadRequest},
		{"the second", "a", command.NewSessionID(), 1, ""},
		{"too many of a caller, and of all", "a", command.NewSessionID(), 1, command.KindBusy},
		{"too many of all", "c", command.NewSessionID(), 1, command.KindBusy},
	} {
		s, kind := open(c.uid, c.id, c.credit)
		if kind != c.want {
			t.Errorf("%s: %q, want %q", c.name, kind, c.want)
		}
		if s != nil {
			all = append(all, s)
		}
	}
	for _, s := range all {
		s.Abort()
	}
	if m.Len() != 0 {
		t.Errorf("%d sessions are left", m.Len())
	}
	for range 2 {
		if _, kind := open("a", command.NewSessionID(), 1); kind != "" {
			t.Errorf("after all were given up: %q", kind)
		}
	}
	if _, kind := open("a", command.NewSessionID(), 1); kind != command.KindBusy {
		t.Errorf("a third of one caller: %q", kind)
	}
}

// Sessions are bounded by what they may hold too: many wide windows of one caller
// would be more memory than a device has.
func TestWindowsOfAllSessionsAreBounded(t *testing.T) {
	m := session.New(session.Options{Device: device, Conn: func() *nats.Conn { return nil }, MaxMemory: 16 << 20})
	defer m.Close()
	var mine, others []*session.Session
	open := func(uid string) (s *session.Session, err error) {
		return m.Open(session.Open{UID: uid, Session: command.Session{ID: command.NewSessionID(), Credit: 1 << 62}})
	}
	for {
		s, err := open("a")
		if err != nil {
			break
		}
		mine = append(mine, s)
	}
	for _, uid := range []string{"b", "c"} {
		if s, err := open(uid); err == nil {
			others = append(others, s)
		}
	}
	if len(mine) != 2 || len(others) != 2 { // of 4 MiB each
		t.Errorf("one caller got %d windows, others %d", len(mine), len(others))
	}
	var e *command.Error
	if _, err := open("d"); !errors.As(err, &e) || e.Kind != command.KindBusy {
		t.Errorf("beyond the memory of all: %v", err)
	}
	for _, s := range append(mine, others...) {
		s.Abort()
	}
	if s, err := open("d"); err != nil {
		t.Errorf("after all were given up: %v", err)
	} else {
		s.Abort()
	}
}

// A caller may send one byte of standard input with a great many bytes of headers,
// which nothing counts.
func TestStandardInputHoldsNoMoreThanItsBytes(t *testing.T) {
	m := session.New(session.Options{Device: device, Conn: func() *nats.Conn { return nil }})
	defer m.Close()
	s, err := m.Open(session.Open{UID: "a", Session: command.Session{ID: command.NewSessionID(), Credit: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	heap := func() uint64 {
		runtime.GC()
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		return now.HeapAlloc
	}
	const messages, size = 512, 256 << 10
	before := heap()
	for i := range messages {
		whole := make([]byte, size) // a message; its data is the end of it
		header := map[string][]string{command.HeaderSeq: {strconv.Itoa(i + 1)}}
		if err := m.Control("a", command.Target{Device: device, UID: "a", Session: s.ID(), Op: command.OpIn}, header, whole[size-1:]); err != nil {
			t.Fatal(err)
		}
	}
	if after := heap(); after > before+messages*size/16 {
		t.Errorf("%d bytes of input hold %d bytes of memory", messages, after-before)
	}
	got := make([]byte, 2*messages)
	if n, err := s.Stdin().Read(got); n != messages || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// Another caller can neither control a session nor hear it, also where it knows
// the session's id.
func TestAForeignSessionIsOutOfReach(t *testing.T) {
	r := newRig(t, session.Options{}, nil)
	s, err := r.m.Open(session.Open{UID: command.UID("https://id.example#alice"), Session: command.Session{ID: command.NewSessionID(), Credit: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	// The static user "ops" may publish on any uid's subjects; the device refuses.
	r.m.Control(command.UID(broker.UserOps), command.Target{Device: device, UID: s.UID(), Session: s.ID(), Op: command.OpCancel}, nil, nil)
	if s.Context().Err() != nil {
		t.Error("another caller cancelled the session")
	}
	if err := r.m.Control(command.UID(broker.UserOps), command.Target{Device: device, UID: s.UID(), Session: s.ID(), Op: command.OpCancel}, nil, nil); !errors.Is(err, session.ErrForeign) {
		t.Errorf("err = %v", err)
	}
	if err := r.m.Control(command.UID(broker.UserOps), command.Target{Device: device, UID: command.UID(broker.UserOps), Session: s.ID(), Op: command.OpCancel}, nil, nil); !errors.Is(err, session.ErrUnknown) {
		t.Errorf("err = %v", err)
	}
}

func TestAStopTellsTheCaller(t *testing.T) {
	r := newRig(t, session.Options{}, wait)
	done := make(chan error, 1)
	go func() {
		done <- r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: writerFunc(func(p []byte) (int, error) {
			go r.m.Close()
			return len(p), nil
		})})
	}()
	if err := within(t, done); !errors.Is(err, client.ErrBusy) {
		t.Errorf("err = %v", err)
	}
	if err := r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: io.Discard}); !errors.Is(err, client.ErrBusy) {
		t.Errorf("a session of an agent that stops: %v", err)
	}
}

func TestASourceThatPanicsEndsItsSession(t *testing.T) {
	r := newRig(t, session.Options{}, func(context.Context, *session.Session, command.LogsRequest) session.Result { panic("oh") })
	err := r.c.Logs(t.Context(), device, client.LogsOptions{Container: "x", Stdout: io.Discard})
	if !errors.Is(err, client.ErrFailed) || !strings.Contains(err.Error(), "its log says why") {
		t.Errorf("err = %v", err)
	}
}

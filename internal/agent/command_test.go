package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// counting is a handler that counts its runs and answers with the count.
type counting struct{ runs atomic.Int64 }

func (c *counting) Handle(context.Context, *Request) (any, error) {
	return map[string]int64{"run": c.runs.Add(1)}, nil
}

func withHandler(o Options, verb command.Verb, h Handler) Options {
	o.Handlers = map[command.Verb]Handler{verb: h}
	return o
}

func TestEachRefusalHasItsKind(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	o := withHandler(w.options("d1"), command.VerbExec, exec)
	o.Handlers[command.VerbShell] = nil // an agent that does not serve it
	a := start(t, o)
	now, _ := w.clock.Earliest()
	with := func(change func(*command.RequestHeader)) command.RequestHeader {
		h := w.change(a.Agent)
		change(&h)
		return h
	}
	none := command.RequestHeader{}
	for _, tc := range []struct {
		name    string
		verb    command.Verb
		header  command.RequestHeader
		payload string
		want    command.Kind
	}{
		{"ping", command.VerbPing, none, "", ""},
		{"ping with an object", command.VerbPing, none, `{"new_field":1}`, ""},
		{"ping with a deadline", command.VerbPing, command.RequestHeader{Deadline: now.Add(time.Minute)}, "", ""},
		{"ping, not JSON", command.VerbPing, none, "hello", command.KindBadRequest},
		{"ping, a list", command.VerbPing, none, "[]", command.KindBadRequest},
		{"ping, largest payload", command.VerbPing, none, "{}" + strings.Repeat(" ", command.MaxDocument-2), ""},
		{"ping, too large", command.VerbPing, none, "{}" + strings.Repeat(" ", command.MaxDocument-1), command.KindBadRequest},
		{"ping, expired", command.VerbPing, command.RequestHeader{Deadline: now.Add(-time.Millisecond)}, "", command.KindExpired},
		{"ping, deadline too far", command.VerbPing, command.RequestHeader{Deadline: now.Add(25 * time.Hour)}, "", command.KindBadRequest},
		{"ping, request id no UUID", command.VerbPing, command.RequestHeader{RequestID: "1"}, "", command.KindBadRequest},
		{"ping, older protocol", command.VerbPing, command.RequestHeader{Protocol: 2}, "", ""},
		{"ping, protocol too new", command.VerbPing, command.RequestHeader{Protocol: 3}, "", command.KindBadRequest},
		{"unknown verb", "reboot", none, "", command.KindUnsupportedVerb},
		{"known verb without handler", command.VerbShell, none, "", command.KindUnsupportedVerb},
		{"verb with a dot", "ping.now", none, "", command.KindBadRequest},
		{"exec", command.VerbExec, with(func(*command.RequestHeader) {}), "{}", ""},
		{"exec without request id", command.VerbExec, with(func(h *command.RequestHeader) { h.RequestID = "" }), "{}", command.KindBadRequest},
		{"exec without deadline", command.VerbExec, with(func(h *command.RequestHeader) { h.Deadline = time.Time{} }), "{}", command.KindBadRequest},
		{"exec without instance", command.VerbExec, with(func(h *command.RequestHeader) { h.Instance = "" }), "{}", command.KindBadRequest},
		{"exec, expired", command.VerbExec, with(func(h *command.RequestHeader) { h.Deadline = now.Add(-time.Millisecond) }), "{}", command.KindExpired},
		{"exec, deadline too far", command.VerbExec, with(func(h *command.RequestHeader) { h.Deadline = now.Add(25 * time.Hour) }), "{}", command.KindBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nc := w.ops
			if !tc.verb.Known() {
				nc = w.dialWide()
			}
			msg := &nats.Msg{Subject: command.Subject("d1", tc.verb), Header: nats.Header{}, Data: []byte(tc.payload)}
			tc.header.Write(msg.Header)
			reply, err := nc.RequestMsg(msg, patience)
			if err != nil {
				t.Fatal(err)
			}
			if got := kindOf(reply); got != tc.want {
				t.Fatalf("kind %q, want %q: %s", got, tc.want, reply.Data)
			}
			if tc.want == "" {
				return
			}
			e, _ := command.DecodeError(reply.Header, reply.Data)
			if e.Message == "" || e.RequestID != tc.header.RequestID && tc.want != command.KindBadRequest {
				t.Errorf("%+v", e)
			}
		})
	}
	if n := exec.runs.Load(); n != 1 {
		t.Errorf("exec ran %d times", n)
	}
	shell := w.must("d1", command.VerbShell, none, "")
	if !strings.Contains(string(shell.Data), "does not serve it yet") {
		t.Errorf("shell: %s", shell.Data)
	}
}

func TestRepeatedHeadersAreRefused(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	for _, name := range []string{command.HeaderProtocol, command.HeaderRequestID, command.HeaderDeadline, command.HeaderInstance} {
		msg := &nats.Msg{Subject: command.Subject("d1", command.VerbPing), Header: nats.Header{name: {"1", "1"}}}
		reply, err := w.ops.RequestMsg(msg, patience)
		if err != nil {
			t.Fatal(err)
		}
		if kindOf(reply) != command.KindBadRequest || !strings.Contains(string(reply.Data), name) {
			t.Errorf("%s: %s", name, reply.Data)
		}
	}
}

func TestNeighbouringProtocolsServeEachOther(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		agent, client int
		want          command.Kind
	}{
		{1, 0, ""}, {1, 1, ""}, {1, 2, ""}, {1, 3, command.KindBadRequest},
		{2, 0, ""}, {2, 1, ""}, {2, 2, ""}, {2, 3, ""}, {2, 4, command.KindBadRequest},
		{3, 1, command.KindBadRequest}, {3, 0, command.KindBadRequest},
	} {
		id := fmt.Sprintf("d-%d-%d", tc.agent, tc.client)
		o := w.options(id)
		o.Protocol = tc.agent
		a := start(t, o)
		msg := &nats.Msg{Subject: command.Subject(id, command.VerbPing), Header: nats.Header{}}
		if tc.client > 0 { // absent means 1
			command.RequestHeader{Protocol: tc.client}.Write(msg.Header)
		}
		reply, err := w.ops.RequestMsg(msg, patience)
		if err != nil {
			t.Fatal(err)
		}
		if got := kindOf(reply); got != tc.want {
			t.Errorf("agent %d, client %d: %q, want %q", tc.agent, tc.client, got, tc.want)
		}
		if tc.want == "" {
			pong, err := command.DecodeReply[command.PingReply](reply.Header, reply.Data)
			if err != nil || pong.Protocol != tc.agent {
				t.Errorf("agent %d, client %d: %+v %v", tc.agent, tc.client, pong, err)
			}
		}
		a.stop()
	}
}

func TestARepeatedRequestGetsTheFirstReply(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	a := start(t, withHandler(w.options("d1"), command.VerbExec, exec))
	for _, verb := range []command.Verb{command.VerbPing, command.VerbExec} {
		h := w.change(a.Agent)
		first := w.must("d1", verb, h, "{}")
		again := w.must("d1", verb, h, "{}")
		if kindOf(first) != "" || string(first.Data) != string(again.Data) {
			t.Errorf("%s: %s, then %s", verb, first.Data, again.Data)
		}
		if first.Header.Get(command.HeaderReplayed) != "" || again.Header.Get(command.HeaderReplayed) != "true" {
			t.Errorf("%s: replayed %v, then %v", verb, first.Header, again.Header)
		}
		if other := w.must("d1", verb, h, `{ }`); kindOf(other) != command.KindBadRequest {
			t.Errorf("%s with another payload: %s", verb, other.Data)
		}
	}
	if n := exec.runs.Load(); n != 1 {
		t.Errorf("exec ran %d times", n)
	}
	replayed := 0
	for _, r := range w.awaitAudit("d1", 6) {
		if r.Replayed {
			replayed++
		}
	}
	if replayed != 2 {
		t.Errorf("%d records say replayed", replayed)
	}
}

// TestARepetitionAfterTheDeadlineTellsWhatRan: "expired: nothing ran" would be a
// lie about a command that did, and whose reply was lost.
func TestARepetitionAfterTheDeadlineTellsWhatRan(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	a := start(t, withHandler(w.options("d1"), command.VerbExec, exec))
	for _, verb := range []command.Verb{command.VerbPing, command.VerbExec} {
		h := w.change(a.Agent)
		now, _ := w.clock.Latest()
		h.Deadline = now.Add(500 * time.Millisecond)
		first := w.must("d1", verb, h, "{}")
		if kind := kindOf(first); kind == command.KindExpired {
			t.Fatalf("%s took more than 500 ms to arrive", verb)
		}
		testwait.For(t, patience, "the deadline to pass", func() bool { now, _ := w.clock.Earliest(); return now.After(h.Deadline) })
		again := w.must("d1", verb, h, "{}")
		if again.Header.Get(command.HeaderReplayed) != "true" || string(again.Data) != string(first.Data) {
			t.Errorf("%s: %s, then %v %s", verb, first.Data, again.Header, again.Data)
		}
		h.RequestID = command.NewRequestID()
		if late := w.must("d1", verb, h, "{}"); kindOf(late) != command.KindExpired {
			t.Errorf("%s that never ran: %s", verb, late.Data)
		}
	}
	if n := exec.runs.Load(); n != 1 {
		t.Errorf("exec ran %d times", n)
	}
}

func TestAnErrorIsReplayedAsAnError(t *testing.T) {
	w := newWorld(t)
	a := start(t, withHandler(w.options("d1"), command.VerbExec, HandlerFunc(func(context.Context, *Request) (any, error) {
		return nil, command.NewError(command.KindNotFound, "no such container")
	})))
	h := w.change(a.Agent)
	w.must("d1", command.VerbExec, h, "{}")
	again := w.must("d1", command.VerbExec, h, "{}")
	e, ok := command.DecodeError(again.Header, again.Data)
	if !ok || e.Kind != command.KindNotFound || e.RequestID != h.RequestID || again.Header.Get(command.HeaderReplayed) != "true" {
		t.Errorf("%v %s", again.Header, again.Data)
	}
}

// gate is a handler that waits to be let through.
type gate struct {
	entered chan *Request
	open    chan struct{}
	runs    atomic.Int64
}

func newGate() *gate { return &gate{entered: make(chan *Request, 64), open: make(chan struct{})} }

func (g *gate) Handle(ctx context.Context, req *Request) (any, error) {
	g.runs.Add(1)
	g.entered <- req
	select {
	case <-g.open:
		return struct{}{}, req.StillValid()
	case <-ctx.Done():
		return nil, errors.New("told to stop: " + secretDetail)
	}
}

const secretDetail = "a detail for the log"

// ask in the background.
func (w *world) later(device string, verb command.Verb, h command.RequestHeader) <-chan *nats.Msg {
	out := make(chan *nats.Msg, 1)
	go func() {
		reply, err := w.ask(device, verb, h, "{}")
		if err != nil {
			reply = &nats.Msg{Header: nats.Header{command.HeaderError: {err.Error()}}}
		}
		out <- reply
	}()
	return out
}

func TestBusyBeyondTheLimitAndPingStillAnswers(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	o := withHandler(w.options("d1"), command.VerbExec, g)
	o.MaxConcurrent = 4 // 2 of one caller
	a := start(t, o)
	first, second := w.later("d1", command.VerbExec, w.change(a.Agent)), w.later("d1", command.VerbExec, w.change(a.Agent))
	<-g.entered
	req := <-g.entered
	third := w.change(a.Agent)
	if reply := w.must("d1", command.VerbExec, third, "{}"); kindOf(reply) != command.KindBusy {
		t.Errorf("beyond the caller's share: %s", reply.Data)
	}
	// Another caller still finds a slot.
	other := w.change(a.Agent)
	msg := &nats.Msg{Subject: command.Subject("d1", command.VerbExec), Header: nats.Header{}, Data: []byte("{}")}
	other.Write(msg.Header)
	elsewhere := make(chan *nats.Msg, 1)
	go func() {
		reply, err := w.dial(userWide).RequestMsg(msg, patience)
		if err != nil {
			reply = &nats.Msg{Header: nats.Header{command.HeaderError: {err.Error()}}}
		}
		elsewhere <- reply
	}()
	select {
	case <-g.entered:
	case reply := <-elsewhere:
		t.Fatalf("another caller: %s", reply.Data)
	case <-time.After(patience):
		t.Fatal("another caller's command does not run")
	}
	if reply := w.must("d1", command.VerbExec, req.Header, "{}"); kindOf(reply) != command.KindDuplicate {
		t.Errorf("while it runs: %s", reply.Data)
	}
	w.ping("d1")
	close(g.open)
	for _, reply := range []*nats.Msg{<-first, <-second, <-elsewhere} {
		if kindOf(reply) != "" {
			t.Errorf("accepted: %s", reply.Data)
		}
	}
	// What was refused as busy did not run, and may be sent again with its id.
	testwait.For(t, patience, "a free slot", func() bool {
		return kindOf(w.must("d1", command.VerbExec, third, "{}")) == ""
	})
	if n := g.runs.Load(); n != 4 {
		t.Errorf("%d runs", n)
	}
}

func TestAPanicIsContainedAndItsStackStaysInTheLog(t *testing.T) {
	w := newWorld(t)
	for verb, id := range map[command.Verb]string{command.VerbExec: "d1", command.VerbPing: "d2"} {
		a := start(t, withHandler(w.options(id), verb, HandlerFunc(func(context.Context, *Request) (any, error) {
			panic("the handler is broken")
		})))
		h := w.change(a.Agent)
		for range 2 { // the second is a replay
			reply := w.must(id, verb, h, "{}")
			if kindOf(reply) != command.KindInternal || strings.Contains(string(reply.Data), "broken") || strings.Contains(string(reply.Data), ".go") {
				t.Errorf("%s: %s", verb, reply.Data)
			}
		}
	}
	if log := w.log.String(); !strings.Contains(log, "the handler is broken") || !strings.Contains(log, "command_test.go") {
		t.Error("the log lacks the panic or its stack")
	}
}

func TestAFaultOfTheAgentIsNotToldToTheCaller(t *testing.T) {
	w := newWorld(t)
	a := start(t, withHandler(w.options("d1"), command.VerbExec, HandlerFunc(func(context.Context, *Request) (any, error) {
		return nil, errors.New(secretDetail)
	})))
	reply := w.must("d1", command.VerbExec, w.change(a.Agent), "{}")
	if kindOf(reply) != command.KindInternal || strings.Contains(string(reply.Data), secretDetail) || !strings.Contains(w.log.String(), secretDetail) {
		t.Errorf("%s", reply.Data)
	}
}

func TestAReplyThatIsTooLargeIsNotSent(t *testing.T) {
	w := newWorld(t)
	a := start(t, withHandler(w.options("d1"), command.VerbExec, HandlerFunc(func(context.Context, *Request) (any, error) {
		return strings.Repeat("x", command.MaxDocument), nil
	})))
	if reply := w.must("d1", command.VerbExec, w.change(a.Agent), "{}"); kindOf(reply) != command.KindInternal {
		t.Errorf("%.100s", reply.Data)
	}
}

// TestExpiredCommandNeverRuns holds for a command that expires while it waits,
// too: the check right before the change sees it.
func TestExpiredCommandNeverRuns(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	a := start(t, withHandler(w.options("d1"), command.VerbExec, g))
	h := w.change(a.Agent)
	now, _ := w.clock.Earliest()
	h.Deadline = now.Add(50 * time.Millisecond)
	reply := w.later("d1", command.VerbExec, h)
	<-g.entered
	testwait.For(t, patience, "the deadline", func() bool {
		now, _ := a.clock.Latest()
		return now.After(h.Deadline)
	})
	close(g.open)
	if r := <-reply; kindOf(r) != command.KindExpired {
		t.Errorf("%s", r.Data)
	}
}

// TestRunChecksTheDeadlineAgain: a command that was accepted in time and got
// its turn too late does not reach its handler.
func TestRunChecksTheDeadlineAgain(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	a := start(t, withHandler(w.options("d1"), command.VerbExec, exec))
	now, _ := a.clock.Latest()
	c := &call{msg: &nats.Msg{}, target: command.Target{Verb: command.VerbExec}, handler: exec, header: command.RequestHeader{Deadline: now}}
	answer := a.server.run(t.Context(), c)
	if answer.err == nil || answer.err.Kind != command.KindExpired || exec.runs.Load() != 0 {
		t.Errorf("%+v after %d runs", answer.err, exec.runs.Load())
	}
}

func TestBrokerTimeWinsOverTheDevicesClock(t *testing.T) {
	w := newWorld(t)
	for id, skew := range map[string]time.Duration{"fast": time.Hour, "slow": -time.Hour} {
		exec := &counting{}
		o := withHandler(w.options(id), command.VerbExec, exec)
		o.Now = func() time.Time { return time.Now().Add(skew) }
		a := start(t, o)
		now, _ := w.clock.Earliest()
		good, late := w.change(a.Agent), w.change(a.Agent)
		good.Deadline, late.Deadline = now.Add(5*time.Second), now.Add(-5*time.Second)
		if reply := w.must(id, command.VerbExec, good, "{}"); kindOf(reply) != "" {
			t.Errorf("%s, in time: %s", id, reply.Data)
		}
		if reply := w.must(id, command.VerbExec, late, "{}"); kindOf(reply) != command.KindExpired {
			t.Errorf("%s, too late: %s", id, reply.Data)
		}
		near := func(what string, at time.Time) {
			if d := at.Sub(now).Abs(); d > time.Minute {
				t.Errorf("%s: %s is off by %v", id, what, d)
			}
		}
		near("ping", *w.ping(id).Time)
		s := w.awaitStatus(id, "published", func(command.Status) bool { return true })
		near("status", s.Time)
		near("start", s.StartedAt)
		near("audit", w.awaitAudit(id, 1)[0].Time)
	}
}

func TestWithoutTheTimeNothingIsChanged(t *testing.T) {
	s := server{clock: &brokertime.Clock{}}
	c := &call{header: command.RequestHeader{Deadline: time.Now().Add(-time.Hour)}}
	if refused := s.checkDeadline(c, true); refused == nil || refused.err.Kind != command.KindBusy {
		t.Errorf("exec: %+v", refused)
	}
	if refused := s.checkDeadline(c, false); refused != nil {
		t.Errorf("ping: %+v", refused.err)
	}
}

func TestACommandForAnotherInstanceGetsNoReply(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	o := withHandler(w.options("d1"), command.VerbExec, exec)
	a := start(t, o)
	h := w.change(a.Agent)
	h.Instance = "somebody-else"
	msg := &nats.Msg{Subject: command.Subject("d1", command.VerbExec), Header: nats.Header{}, Data: []byte("{}")}
	h.Write(msg.Header)
	if reply, err := w.ops.RequestMsg(msg, 200*time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
		t.Errorf("reply %v, %v", reply, err)
	}
	w.awaitStatus("d1", "clash", func(s command.Status) bool { return condition(s, command.ConditionIDClash) })
	if r := w.awaitAudit("d1", 1)[0]; r.Kind != command.KindBadRequest || !strings.Contains(r.Reason, "another instance") {
		t.Errorf("%+v", r.AuditRecord)
	}
	before := a.Instance()
	a.stop()

	// The same agent, started again, knows its own earlier name and says so.
	a = start(t, o)
	h = w.change(a.Agent)
	h.Instance = before
	if reply := w.must("d1", command.VerbExec, h, "{}"); kindOf(reply) != command.KindBadRequest || !strings.Contains(string(reply.Data), "restarted") {
		t.Errorf("%s", reply.Data)
	}
	if n := exec.runs.Load(); n != 0 {
		t.Errorf("%d runs", n)
	}
}

func TestAStopAnswersWhatWasAccepted(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	a := start(t, withHandler(w.options("d1"), command.VerbExec, g))
	reply := w.later("d1", command.VerbExec, w.change(a.Agent))
	<-g.entered
	stopped := make(chan struct{})
	go func() { a.stop(); close(stopped) }()
	testwait.For(t, patience, "no more intake", func() bool {
		_, err := w.ops.Request(command.Subject("d1", command.VerbPing), nil, time.Second)
		return errors.Is(err, nats.ErrNoResponders)
	})
	close(g.open)
	if r := <-reply; kindOf(r) != "" {
		t.Errorf("%v %s", r.Header, r.Data)
	}
	<-stopped
	last := w.audit("d1")
	if n := len(last); n == 0 || last[n-1].Verb != command.VerbExec {
		t.Errorf("%d records at the broker after the stop", n)
	}
}

func TestAStopIsBounded(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	o := withHandler(w.options("d1"), command.VerbExec, g)
	o.DrainTimeout = 50 * time.Millisecond
	a := start(t, o)
	reply := w.later("d1", command.VerbExec, w.change(a.Agent))
	<-g.entered
	began := time.Now()
	a.stop()
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if r := <-reply; kindOf(r) != command.KindInternal {
		t.Errorf("%v %s", r.Header, r.Data)
	}
}

// dialWide connects somebody in the operators' account who may publish
// anything, as no role may.
func (w *world) dialWide() *nats.Conn { return w.dial(userWide) }

package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func (w *world) stopServer() { w.srv.Close() }

// awaitPing waits until a ping is answered.
func (w *world) awaitPing(device string) {
	w.t.Helper()
	testwait.For(w.t, 2*patience, "an answer of "+device, func() bool {
		reply, err := w.ops.Request(command.Subject(device, command.VerbPing), nil, time.Second)
		return err == nil && kindOf(reply) == ""
	})
}

func TestABrokerThatComesLateIsFound(t *testing.T) {
	w := newWorld(t)
	w.stopServer()
	a := launch(t, w.options("d1"))
	testwait.For(t, patience, "attempts", func() bool { return strings.Count(w.log.String(), "no connection to the broker") > 2 })
	w.startServer()
	a.awaitReady()
	w.awaitPing("d1")
}

func TestAnAgentThatNeverConnectedStopsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.stopServer()
	a := launch(t, w.options("d1"))
	began := time.Now()
	a.stop()
	if d := time.Since(began); d > time.Second {
		t.Errorf("took %v", d)
	}
}

// TestAStopWhileAConnectionIsBeingOpenedLeavesNone is held by the leak check, too.
func TestAStopWhileAConnectionIsBeingOpenedLeavesNone(t *testing.T) {
	w := newWorld(t)
	for i := range 40 {
		o := w.options("d1")
		o.StateDir = ""
		o.RenewInterval, o.RenewOverlap = time.Millisecond, time.Millisecond
		a := launch(t, o)
		if i%2 == 0 {
			a.awaitReady()
		}
		a.stop()
	}
	testwait.For(t, patience, "all connections closed", func() bool {
		conns, err := w.srv.Connz(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range conns.Conns {
			if strings.HasPrefix(c.Name, "fleet-agent") {
				return false
			}
		}
		return true
	})
}

func TestAServerRestartIsSurvived(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	w.ping("d1")
	for range 2 {
		before := document[command.Heartbeat](t, w.awaitBeat("d1"))
		w.stopServer()
		w.startServer()
		w.awaitPing("d1")
		testwait.For(t, patience, "a heartbeat of the new connection", func() bool {
			after := document[command.Heartbeat](t, w.awaitBeat("d1"))
			return after.Seq > before.Seq && after.Metrics["connects_total"] > before.Metrics["connects_total"]
		})
	}
	w.awaitAudit("d1", 3)
	checkChain(t, w.audit("d1"))
}

func (w *world) awaitBeat(device string) *nats.Msg {
	w.t.Helper()
	var msg *nats.Msg
	testwait.For(w.t, patience, "heartbeat of "+device, func() bool {
		msg = w.last(access.StreamHeartbeat, command.HeartbeatSubject(device))
		return msg != nil
	})
	return msg
}

// TestRenewalLosesNoCommandAndRunsNoneTwice forces renewals all the time under a
// constant stream of commands.
func TestRenewalLosesNoCommandAndRunsNoneTwice(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	runs := map[string]int{}
	o := withHandler(w.options("d1"), command.VerbExec, HandlerFunc(func(_ context.Context, req *Request) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		runs[req.Header.RequestID]++
		return struct{}{}, nil
	}))
	o.RenewInterval, o.RenewOverlap = 20*time.Millisecond, 5*time.Millisecond
	o.MaxRequests = 1 << 20
	a := start(t, o)

	const workers, renewals = 4, 12
	var sent, failed atomic.Int64
	enough := func() bool { return a.connects.Load() > renewals }
	var wg sync.WaitGroup
	for i := range workers {
		nc := w.dial(broker.UserOps)
		wg.Go(func() {
			for n := 0; !enough() && n < 100_000; n++ {
				verb := []command.Verb{command.VerbPing, command.VerbExec}[(i+n)%2]
				msg := &nats.Msg{Subject: command.Subject("d1", verb), Header: nats.Header{}, Data: []byte("{}")}
				w.change(a.Agent).Write(msg.Header)
				reply, err := nc.RequestMsg(msg, patience)
				sent.Add(1)
				if err != nil || kindOf(reply) != "" || reply.Header.Get(command.HeaderReplayed) != "" {
					failed.Add(1)
					t.Errorf("%s: %v %v", verb, reply, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 || !enough() {
		t.Fatalf("%d of %d failed, %d connects", failed.Load(), sent.Load(), a.connects.Load())
	}
	if sent.Load() < renewals {
		t.Fatalf("only %d commands", sent.Load())
	}
	mu.Lock()
	for id, n := range runs {
		if n != 1 {
			t.Errorf("%s ran %d times", id, n)
		}
	}
	mu.Unlock()
	if served := a.server.served.Load(); served != uint64(sent.Load()) {
		t.Errorf("%d commands sent, %d served", sent.Load(), served)
	}
	t.Logf("%d commands over %d connections", sent.Load(), a.connects.Load())
	a.stop()
	records := w.audit("d1")
	if int64(len(records)) < min(sent.Load(), 1000) {
		t.Errorf("%d commands, %d records", sent.Load(), len(records))
	}
}

func TestRenewalsComeWellBeforeTheEnd(t *testing.T) {
	for range 100 {
		if in := renewIn(time.Hour, 0); in < 39*time.Minute || in > 45*time.Minute {
			t.Errorf("%v", in)
		}
	}
	if renewIn(0, 0) != 0 || renewIn(0, time.Second) != time.Second || renewIn(time.Hour, time.Minute) != time.Minute {
		t.Error("without an end, or forced")
	}
	if in := renewIn(time.Second, time.Minute); in > time.Second {
		t.Errorf("%v, after the end", in)
	}
}

func TestARenewalLetsARunningCommandFinish(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	o := withHandler(w.options("d1"), command.VerbExec, g)
	o.RenewInterval = 50 * time.Millisecond
	a := start(t, o)
	reply := w.later("d1", command.VerbExec, w.change(a.Agent))
	<-g.entered
	from := a.connects.Load()
	testwait.For(t, patience, "renewals", func() bool { return a.connects.Load() > from+2 })
	close(g.open)
	if r := <-reply; kindOf(r) != "" {
		t.Errorf("%v %s", r.Header, r.Data)
	}
}

// flaky is a credential source that can be broken.
type flaky struct {
	credentials.Source
	broken atomic.Bool
	asked  atomic.Int64
}

func (f *flaky) Credential(ctx context.Context) (credentials.Credential, error) {
	f.asked.Add(1)
	if f.broken.Load() {
		return credentials.Credential{}, fmt.Errorf("the issuer is away")
	}
	return f.Source.Credential(ctx)
}

func TestARenewalThatFailsIsTriedAgainWhileTheOldConnectionServes(t *testing.T) {
	w := newWorld(t)
	source := &flaky{}
	o := w.options("d1")
	source.Source, o.NATS.Credentials = o.NATS.Credentials, source
	o.RenewInterval = 20 * time.Millisecond
	a := start(t, o)
	source.broken.Store(true)
	from := source.asked.Load()
	testwait.For(t, patience, "failed renewals", func() bool { return source.asked.Load() > from+3 })
	w.ping("d1")
	connects := a.connects.Load()
	source.broken.Store(false)
	testwait.For(t, patience, "a renewal", func() bool { return a.connects.Load() > connects+1 })
	w.ping("d1")
	testwait.For(t, patience, "the retired connections to close", func() bool {
		conns, err := w.srv.Connz(nil)
		n := 0
		for _, c := range conns.Conns {
			if strings.HasPrefix(c.Name, "fleet-agent") {
				n++
			}
		}
		return err == nil && n <= 3
	})
}

func TestAWrongPasswordIsRetriedForEver(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.NATS.Credentials = credentials.Static(credentials.Credential{User: broker.UserDevice, Password: "wrong"})
	a := launch(t, o)
	testwait.For(t, patience, "attempts", func() bool { return strings.Count(w.log.String(), "refused the credential") > 3 })
	a.stop()
}

// TestAnotherDevicesCredentialIsNoticed: the connection comes about, but takes no
// commands.
func TestAnotherDevicesCredentialIsNoticed(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.NATS.Credentials = credentials.Static(credentials.Credential{User: userOther, Password: password})
	a := launch(t, o)
	testwait.For(t, patience, "a clear message", func() bool {
		return strings.Contains(w.log.String(), "does not let this credential take commands")
	})
	select {
	case <-a.Ready():
		t.Error("it says that it is ready")
	default:
	}
	a.stop()
}

func TestAConnectionThatTheServerClosesComesBack(t *testing.T) {
	w := newWorld(t)
	a := start(t, w.options("d1"))
	a.current.Load().nc.Close() // as the library does when it gives up
	testwait.For(t, patience, "another connection", func() bool { return a.connects.Load() > 1 })
	w.awaitPing("d1")
}

func TestTwoAgentsWithOneIDSeeEachOther(t *testing.T) {
	w := newWorld(t)
	exec1, exec2 := &counting{}, &counting{}
	a := start(t, withHandler(w.options("d1"), command.VerbExec, exec1))
	b := start(t, withHandler(w.options("d1"), command.VerbExec, exec2))
	for _, r := range []*running{a, b} {
		w.awaitStatus("d1", "clash seen by "+r.Instance(), func(s command.Status) bool {
			return s.Instance == r.Instance() && condition(s, command.ConditionIDClash) || r.state.conditionHolds(command.ConditionIDClash)
		})
	}
	// A command that changes something is run by the one that it names alone.
	for range 10 {
		if reply := w.must("d1", command.VerbExec, w.change(b.Agent), "{}"); kindOf(reply) != "" {
			t.Errorf("%s", reply.Data)
		}
	}
	if exec1.runs.Load() != 0 || exec2.runs.Load() != 10 {
		t.Errorf("runs: %d and %d", exec1.runs.Load(), exec2.runs.Load())
	}
	b.stop()
	w.awaitStatus("d1", "alone again", func(s command.Status) bool {
		return s.Instance == a.Instance() && len(s.Conditions) > 0 && !condition(s, command.ConditionIDClash)
	})
}

func TestInProcessConnectionsWork(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.StateDir, o.NATS.URLs, o.NATS.InProcess = "", nil, w.srv
	a := start(t, o)
	w.ping("d1")
	w.awaitAudit("d1", 1)
	a.stop()
}

func TestRunIsForOnce(t *testing.T) {
	w := newWorld(t)
	a := start(t, w.options("d1"))
	if err := a.Run(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestOneStateDirServesOneAgent(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	start(t, o)
	o.DeviceID = "d2"
	second, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another agent") {
		t.Errorf("err = %v", err)
	}
}

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func (r *running) awaitConfirmed() {
	r.t.Helper()
	testwait.For(r.t, patience, "all audit records confirmed", func() bool { return r.audit.spool.Pending() == 0 })
}

// withoutAudit takes the audit stream away, as if it were down.
func (w *world) withoutAudit() (restore func()) {
	w.t.Helper()
	js, err := jetstream.New(w.data)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := js.DeleteStream(w.t.Context(), access.StreamAudit); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.t.Helper()
		if _, err := broker.Provision(w.t.Context(), w.data, broker.ProvisionOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestTheAuditChainGoesOnAcrossRestarts(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	const runs, pings = 3, 5
	for range runs {
		a := start(t, o)
		for range pings {
			w.ping("d1")
		}
		a.stop()
	}
	records := w.awaitAudit("d1", runs*pings)
	if len(records) != runs*pings {
		t.Errorf("%d records of %d commands", len(records), runs*pings)
	}
	checkChain(t, records)
}

// TestRecordsOfAnOutageArriveOnceAndInOrder: commands go on while the stream is
// away, the agent is restarted meanwhile, and the server too.
func TestRecordsOfAnOutageArriveOnceAndInOrder(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	exec := &counting{}
	o = withHandler(o, command.VerbExec, exec)
	a := start(t, o)
	total := 0
	use := func() {
		t.Helper()
		w.awaitPing("d1")
		total++
		if reply := w.must("d1", command.VerbExec, w.change(a.Agent), "{}"); kindOf(reply) != "" {
			t.Fatalf("%s", reply.Data)
		}
		total++
	}
	restore := w.withoutAudit()
	use()
	a.stop()
	a = start(t, o)
	use()
	restore()
	use()
	records := w.awaitAudit("d1", total)
	if len(records) != total {
		t.Errorf("%d records of %d commands", len(records), total)
	}
	// Each verb is stored in order, on its own subject.
	byVerb := map[command.Verb][]stored{}
	for _, r := range records {
		byVerb[r.Verb] = append(byVerb[r.Verb], r)
	}
	if len(byVerb[command.VerbPing]) != total/2 || len(byVerb[command.VerbExec]) != total/2 {
		t.Errorf("%d pings, %d execs", len(byVerb[command.VerbPing]), len(byVerb[command.VerbExec]))
	}
	checkChain(t, records)
	a.awaitConfirmed()
}

// TestWhatTheBrokerHasIsNotSentAgain: an agent that was killed before it noted a
// confirmation asks first.
func TestWhatTheBrokerHasIsNotSentAgain(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	a := start(t, o)
	for range 3 {
		w.ping("d1")
	}
	a.awaitConfirmed()
	a.stop()
	// Without the marks of the spool the records count as unconfirmed.
	file := filepath.Join(o.StateDir, auditFile)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, line := range strings.SplitAfter(string(raw), "\n") {
		if !strings.Contains(line, `{"confirmed"`) {
			kept = append(kept, line)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(kept, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	sent := w.countAudit("d1")
	a = start(t, o)
	if n := a.audit.spool.Pending(); n != 3 {
		t.Errorf("%d records pending", n)
	}
	a.awaitConfirmed()
	w.ping("d1")
	a.awaitConfirmed()
	if n := sent(); n != 1 {
		t.Errorf("%d records were sent, want the new one", n)
	}
	checkChain(t, w.audit("d1"))
}

// countAudit counts what is published from now on.
func (w *world) countAudit(device string) func() int {
	w.t.Helper()
	sub, err := w.ops.SubscribeSync("fleet.audit.>")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.ops.Flush(); err != nil {
		w.t.Fatal(err)
	}
	return func() int {
		if err := w.ops.Flush(); err != nil {
			w.t.Fatal(err)
		}
		n, _, err := sub.Pending()
		if err != nil {
			w.t.Fatal(err)
		}
		return n
	}
}

func TestAFullSpoolStopsChangesAndTellsWhatIsLost(t *testing.T) {
	w := newWorld(t)
	o := withHandler(w.options("d1"), command.VerbExec, &counting{})
	o.AuditMaxBytes = 8 << 10
	restore := w.withoutAudit()
	a := start(t, o)
	pings := 0
	testwait.For(t, patience, "records are lost", func() bool {
		w.ping("d1")
		pings++
		return a.audit.spool.Lost() > 2
	})
	w.awaitStatus("d1", "AuditLost", func(s command.Status) bool { return condition(s, command.ConditionAuditLost) })
	if n := strings.Count(w.log.String(), "audit records are being lost"); n != 1 {
		t.Errorf("said %d times in the log", n)
	}

	// Pings that fill their half of the spool do not keep a change out, which has
	// room of its own.
	h := w.change(a.Agent)
	ran := 0
	testwait.For(t, patience, "the room of changes is used up", func() bool {
		reply := w.must("d1", command.VerbExec, h, "{}")
		if kindOf(reply) == command.KindBusy {
			return true
		}
		if kindOf(reply) != "" {
			t.Fatalf("exec: %s", reply.Data)
		}
		ran++
		h = w.change(a.Agent)
		return false
	})
	if ran == 0 {
		t.Error("pings keep a change out")
	}
	w.ping("d1")

	restore()
	testwait.For(t, patience, "the same exec", func() bool { return kindOf(w.must("d1", command.VerbExec, h, "{}")) == "" })
	a.awaitConfirmed()
	w.awaitStatus("d1", "AuditLost is over", func(s command.Status) bool {
		return len(s.Conditions) > 0 && !condition(s, command.ConditionAuditLost)
	})
	records := w.audit("d1")
	var lost uint64
	for _, r := range records {
		lost += r.Lost
	}
	if lost == 0 {
		t.Error("no record says how many were lost")
	}
	checkChain(t, records)
}

func TestATornSpoolIsSetAsideAndReported(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	a := start(t, o)
	w.ping("d1")
	a.awaitConfirmed()
	a.stop()
	file := filepath.Join(o.StateDir, auditFile)
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const torn = `12345678 {"schema":1,"dev`
	if _, err := f.WriteString(torn); err != nil {
		t.Fatal(err)
	}
	f.Close()

	a = start(t, o)
	s := w.awaitStatus("d1", "DamagedFile", func(s command.Status) bool { return condition(s, command.ConditionDamagedFile) })
	if !strings.Contains(s.Conditions[0].Message, "damaged") {
		t.Errorf("%+v", s.Conditions)
	}
	aside, err := os.ReadFile(file + ".damaged")
	if err != nil || string(aside) != torn {
		t.Errorf("set aside: %q %v", aside, err)
	}
	w.ping("d1")
	checkChain(t, w.awaitAudit("d1", 2))
	a.stop()
}

func TestASpoolOfAnotherDeviceIsSetAside(t *testing.T) {
	w := newWorld(t)
	restore := w.withoutAudit()
	o := w.options("golden-image")
	a := start(t, o)
	w.ping("golden-image")
	a.stop()
	restore()
	o.DeviceID = "d1"
	start(t, o)
	w.ping("d1")
	w.awaitStatus("d1", "DamagedFile", func(s command.Status) bool { return condition(s, command.ConditionDamagedFile) })
	records := w.awaitAudit("d1", 1)
	if len(records) != 1 || records[0].Prev != "" {
		t.Errorf("%+v", records)
	}
}

// TestAuditIsOffTheReplysWay: the reply does not wait for the broker to have the
// record.
func TestAuditIsOffTheReplysWay(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.AuditDelay = time.Hour
	a := start(t, o)
	w.ping("d1")
	if n := a.audit.spool.Pending(); n != 1 {
		t.Errorf("%d records kept", n)
	}
	a.stop() // makes an attempt at once
	if n := len(w.audit("d1")); n != 1 {
		t.Errorf("%d records stored after the stop", n)
	}
}

func TestAStateDirThatCannotBeWrittenIsAClearError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(Options{DeviceID: "d1", StateDir: filepath.Join(file, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "state_dir") {
		t.Errorf("err = %v", err)
	}
}

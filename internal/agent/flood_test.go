package agent

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestStrangersCannotPushTrueRecordsOut: senders that cannot be named share one
// subject in the audit stream and a bound on how much of it they use.
func TestStrangersCannotPushTrueRecordsOut(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	a := start(t, withHandler(w.options("d1"), command.VerbExec, exec))
	w.must("d1", command.VerbExec, w.change(a.Agent), "{}")
	insider := w.dial(userInsider)
	for range 2 * sampleMost {
		if err := insider.PublishMsg(&nats.Msg{Subject: command.Subject("d1", command.VerbExec), Data: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := insider.Flush(); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "the refusals", func() bool { return a.server.refused.Load() >= 2*sampleMost })
	w.ping("d1")
	w.awaitAudit("d1", sampleMost+2)
	other, exec1 := 0, 0
	for _, r := range w.audit("d1") {
		switch r.subject {
		case "fleet.audit.d1.other":
			if other++; r.Verb != unverifiedVerb || !strings.Contains(r.Reason, `verb "exec"`) {
				t.Errorf("%+v", r.AuditRecord)
			}
		case "fleet.audit.d1.exec":
			exec1++
		}
	}
	if other != sampleMost || exec1 != 1 {
		t.Errorf("%d records of strangers, %d of exec", other, exec1)
	}
	if n := strings.Count(w.log.String(), "command denied"); n != sampleMost {
		t.Errorf("%d denials in the log", n)
	}
}

func TestStrangersAreCounted(t *testing.T) {
	s := sample{of: "of them"}
	now := time.Now()
	for i := range sampleMost + 7 {
		if kept := s.keep(&answer{reason: "x"}, now.Add(time.Duration(i))); kept != (i < sampleMost) {
			t.Fatalf("%d: kept %v", i, kept)
		}
	}
	next := &answer{reason: "why"}
	if !s.keep(next, now.Add(sampleWindow)) || !strings.Contains(next.reason, "why; 7 more") {
		t.Errorf("%+v", next)
	}
	if again := (&answer{reason: "why"}); !s.keep(again, now.Add(sampleWindow)) || again.reason != "why" {
		t.Errorf("%+v", again)
	}
}

// slowFirst is a ping handler whose first command holds the queue up.
type slowFirst struct{ *gate }

func (slowFirst) inline() {}

// TestOneCallerDoesNotFillTheQueue: of what one caller heaped up while the device
// was held up most is refused, so that another one's commands get their turn.
func TestOneCallerDoesNotFillTheQueue(t *testing.T) {
	w := newWorld(t)
	const heap = 6000
	g := &gate{entered: make(chan *Request, heap+1), open: make(chan struct{})}
	a := start(t, withHandler(w.options("d1"), command.VerbPing, slowFirst{g}))
	flood := w.dial(userWide)
	ping := &nats.Msg{Subject: command.Subject("d1", command.VerbPing), Reply: command.InboxPrefix("x") + ".x", Header: nats.Header{}}
	command.RequestHeader{}.Write(ping.Header)
	for range heap {
		if err := flood.PublishMsg(ping); err != nil {
			t.Fatal(err)
		}
	}
	<-g.entered
	testwait.For(t, patience, "the heap", func() bool { return a.current.Load().waiting() >= heap-1 })
	close(g.open)
	if reply := w.must("d1", command.VerbPing, command.RequestHeader{}, ""); kindOf(reply) != "" {
		t.Errorf("another caller: %s", reply.Data)
	}
	testwait.For(t, patience, "all are looked at", func() bool { return a.server.served.Load()+a.server.refused.Load() == heap+1 })
	if n := a.server.refused.Load(); n < heap/10 {
		t.Errorf("%d of %d are refused", n, heap)
	}
}

func TestWhoFillsTheQueueIsRefused(t *testing.T) {
	var c crowd
	now := time.Unix(1000, 0)
	const most = 1000
	refused := 0
	for range 2 * crowdAtLeast {
		if c.presses("mallory", now, most/2, most) {
			refused++
		}
		if c.presses("alice", now, most/2, most) && refused == 0 {
			t.Fatal("a caller with half of the commands is refused")
		}
		c.presses("mallory", now, 0, most) // counts, and nobody waits
	}
	if refused == 0 {
		t.Error("who sends two of three is not refused")
	}
	if c.presses("alice", now, most, most) || c.presses("bob", now, most, most) {
		t.Error("another one is refused")
	}
	if c.presses("mallory", now, most/4, most) {
		t.Error("refused though few wait")
	}
	if c.presses("mallory", now.Add(crowdWindow), most, most) {
		t.Error("it is not forgotten")
	}
}

// TestAuditKeepsUpWithAFlood: records are gathered for a while, but not where
// that would let them pile up until the spool is full.
func TestAuditKeepsUpWithAFlood(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.AuditDelay = time.Second
	a := start(t, o)
	const n = 7 * auditBatchRecords
	begin := time.Now()
	for range n {
		if err := w.ops.PublishRequest(command.Subject("d1", command.VerbPing), command.InboxPrefix("x")+".x", nil); err != nil {
			t.Fatal(err)
		}
	}
	testwait.For(t, patience, "records at the broker", func() bool {
		return a.server.served.Load() >= n && a.audit.spool.Pending() == 0
	})
	if d := time.Since(begin); d > 4*o.AuditDelay {
		t.Errorf("it took %v, as if each batch waited for more", d)
	}
}

// TestForeignHeartbeatsDoNotHideDesiredState: any device can have messages
// delivered on fleet.seen of another one without a pause.
func TestForeignHeartbeatsDoNotHideDesiredState(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.HeartbeatInterval = time.Minute // the other agent is not forgotten meanwhile, however busy the machine
	start(t, o)
	insider := w.dial(userInsider)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = insider.Publish(command.SeenSubject("d1"), []byte(`{"instance":"x`+strconv.Itoa(i)+`"}`))
		}
	}()
	defer func() { close(stop); <-done }()
	for revision := uint64(1); revision <= 5; revision++ {
		if _, err := w.data.Request(command.DesiredStateSubject("d1"), []byte(`{"schema":1,"deployments":{}}`), patience); err != nil {
			t.Fatal(err)
		}
		testwait.For(t, patience, "the desired state", func() bool { return w.ping("d1").DesiredRevision == revision })
	}
	if strings.Contains(w.log.String(), "commands come in faster") || strings.Count(w.log.String(), "another agent uses") > 1 {
		t.Error("the flood is in the log")
	}
}

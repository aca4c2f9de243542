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
	for range 2 * strangersMost {
		if err := insider.PublishMsg(&nats.Msg{Subject: command.Subject("d1", command.VerbExec), Data: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := insider.Flush(); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "the refusals", func() bool { return a.server.refused.Load() >= 2*strangersMost })
	w.ping("d1")
	w.awaitAudit("d1", strangersMost+2)
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
	if other != strangersMost || exec1 != 1 {
		t.Errorf("%d records of strangers, %d of exec", other, exec1)
	}
	if n := strings.Count(w.log.String(), "command denied"); n != strangersMost {
		t.Errorf("%d denials in the log", n)
	}
}

func TestStrangersAreCounted(t *testing.T) {
	var s strangers
	now := time.Now()
	for i := range strangersMost + 7 {
		if kept := s.keep(&answer{}, now.Add(time.Duration(i))); kept != (i < strangersMost) {
			t.Fatalf("%d: kept %v", i, kept)
		}
	}
	next := &answer{reason: "why"}
	if !s.keep(next, now.Add(strangersWindow)) || !strings.Contains(next.reason, "why; 7 more") {
		t.Errorf("%+v", next)
	}
	if again := (&answer{reason: "why"}); !s.keep(again, now.Add(strangersWindow)) || again.reason != "why" {
		t.Errorf("%+v", again)
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
	start(t, w.options("d1"))
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

package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestAForgedIdentityIsOverwrittenOrRefused is what an operator can try: the
// server's header is the one that counts.
func TestAForgedIdentityIsOverwrittenOrRefused(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	forged := `{"acc":"OPS","user":"root","kind":"Client"}`
	for name, want := range map[string]command.Kind{
		requestInfoHeader:   "",
		"nats-request-info": command.KindDenied,
		"NATS-REQUEST-INFO": command.KindDenied,
		"nATS-rEQUEST-iNFO": command.KindDenied,
	} {
		msg := &nats.Msg{Subject: command.Subject("d1", command.VerbPing), Header: nats.Header{name: {forged}}}
		reply, err := w.ops.RequestMsg(msg, patience)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if got := kindOf(reply); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	for _, r := range w.awaitAudit("d1", 4) {
		switch {
		case r.Outcome == command.OutcomeOK && r.Caller.User == broker.UserOps:
		case r.Kind == command.KindDenied && r.Caller.User == "" && r.Reason != "":
		default:
			t.Errorf("%+v", r.AuditRecord)
		}
	}
	if n := strings.Count(w.log.String(), "command denied"); n != 3 {
		t.Errorf("%d denials in the log", n)
	}
}

// TestInsidersAreDenied is what somebody could try who may publish commands in
// the devices' own account, past the import. No role may.
func TestInsidersAreDenied(t *testing.T) {
	w := newWorld(t)
	exec := &counting{}
	a := start(t, withHandler(w.options("d1"), command.VerbExec, exec))
	insider := w.dial(userInsider)
	replies := make(chan *nats.Msg, 1024)
	if _, err := insider.ChanSubscribe(">", replies); err != nil {
		t.Fatal(err)
	}
	perfect := `{"acc":"OPS","user":"root","kind":"Client"}`
	// The reply subject of d2's desired state, another device's status, an inbox.
	foreign := []string{command.DesiredStateSubject("d2"), command.StatusSubject("d2"), "_INBOX.x", ""}
	n := 0
	for _, reply := range foreign {
		for _, info := range []string{perfect, `{"acc":"FLEET","user":"root","kind":"Client"}`, ""} {
			msg := &nats.Msg{Subject: command.Subject("d1", command.VerbExec), Reply: reply, Header: nats.Header{}, Data: []byte("{}")}
			w.change(a.Agent).Write(msg.Header)
			if info != "" {
				msg.Header[requestInfoHeader] = []string{info}
			}
			if err := insider.PublishMsg(msg); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	for _, r := range w.awaitAudit("d1", n) {
		if r.Kind != command.KindDenied || r.Reason == "" {
			t.Errorf("%+v", r.AuditRecord)
		}
	}
	// A reply subject like those that the server makes cannot be forged: nats-server
	// refuses to publish with one (client.go: replySubjectViolation).
	refused := w.dial(userInsider)
	if err := refused.PublishRequest(command.Subject("d1", command.VerbExec), "_R_.abc", nil); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "the refusal", func() bool {
		return refused.Flush() != nil || refused.LastError() != nil
	})
	w.ping("d1")
	w.awaitAudit("d1", n+1)
	for len(replies) > 0 {
		if m := <-replies; m.Header.Get(command.HeaderError) != "" {
			t.Errorf("answered on %s", m.Subject)
		}
	}
	if exec.runs.Load() != 0 {
		t.Error("exec ran")
	}
	if w.last(access.KVStream(command.DesiredStateBucket), command.DesiredStateSubject("d2")) != nil {
		t.Error("another device's desired state was written")
	}
}

// TestAReplySubjectOfTheOperatorGoesNowhereElse: the server replaces it across
// the import, so that a device never publishes on it.
func TestAReplySubjectOfTheOperatorGoesNowhereElse(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	wide := w.dialWide()
	for _, reply := range []string{command.DesiredStateSubject("d2"), "fleet.audit.d2.exec", "fleet.status.d2"} {
		if err := wide.PublishRequest(command.Subject("d1", command.VerbPing), reply, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.awaitAudit("d1", 3)
	w.ping("d1")
	if w.last(access.KVStream(command.DesiredStateBucket), command.DesiredStateSubject("d2")) != nil ||
		w.last(access.StreamAudit, "fleet.audit.d2.exec") != nil || w.last(access.StreamStatus, "fleet.status.d2") != nil {
		t.Error("an answer was stored as something else")
	}
}

func TestControlOfAnUnknownSessionIsIgnored(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	uid := command.UID(broker.UserOps)
	_, err := w.ops.Request(command.SessionControlSubject("d1", uid, "s1", command.OpIn), []byte("x"), 100*time.Millisecond)
	if !errors.Is(err, nats.ErrTimeout) {
		t.Errorf("err = %v", err)
	}
	w.ping("d1")
}

func TestAuditRecordsStayStorableWhateverACallerSends(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	wide := w.dialWide()
	verb := command.Verb(strings.Repeat("\x01", 3000))
	reply, err := wide.Request(command.Subject("d1", verb), []byte(strings.Repeat("x", 100_000)), patience)
	if err != nil || kindOf(reply) != command.KindUnsupportedVerb {
		t.Fatalf("%v %v", reply, err)
	}
	r := w.awaitAudit("d1", 1)[0]
	if r.subject != "fleet.audit.d1.other" || len(r.Verb) > maxAuditVerb {
		t.Errorf("%q under %s", r.Verb, r.subject)
	}
}

package client

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

func FuzzParseViolation(f *testing.F) {
	f.Add(`nats: permissions violation: Permissions Violation for Publish to "device-commands.d1.ping"`)
	f.Add(`Permissions Violation for Subscription to "_INBOX.x.*" using queue "q"`)
	f.Add(`Violation for Publish to "`)
	f.Add(`Violation for Publish to "\x"`)
	f.Fuzz(func(t *testing.T, message string) {
		subject, _, ok := parseViolation(message)
		if ok != (subject != "") {
			t.Errorf("ok = %v, subject %q", ok, subject)
		}
	})
}

func TestViolationsNameTheirSubject(t *testing.T) {
	for message, want := range map[string]string{
		`nats: permissions violation: Permissions Violation for Publish to "device-commands.d1.ping"`: "device-commands.d1.ping false",
		`Permissions Violation for Subscription to "a.*" using queue "q"`:                             "a.* true",
		`Permissions Violation for Subscription to "a.b" (sid "3")`:                                   "a.b true",
		`Permissions Violation for Publish with Reply of "x"`:                                         " false",
		`something else`: " false",
	} {
		subject, subscription, _ := parseViolation(message)
		if got := fmt.Sprint(subject, " ", subscription); got != want {
			t.Errorf("%s: %q, want %q", message, got, want)
		}
	}
}

// FuzzStoredDocuments decodes what devices may have stored: whatever it is, it
// becomes a document or a fault.
func FuzzStoredDocuments(f *testing.F) {
	for _, doc := range []any{
		command.Status{Schema: 1, DeviceID: "d1"}, command.Heartbeat{Schema: 1, DeviceID: "d1", SubscribedForMS: -1},
		command.DeviceLabels{Schema: 1, Labels: map[string]string{"a": "b"}},
		command.AuditRecord{Schema: 1, DeviceID: "d1", Verb: command.VerbPing, Seq: 1},
	} {
		data, err := json.Marshal(doc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("fleet.audit.d1.ping", data)
	}
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		m := stored{Subject: subject, Seq: 1, At: time.Unix(1, 0), Data: data}
		d := Device{ID: "d1"}
		d.takeStatus(m)
		if d.Status == nil && d.Fault == "" {
			t.Error("neither a status nor a fault")
		}
		d.Fault = ""
		d.takeHeartbeat(m)
		if d.Heartbeat == nil && d.Fault == "" {
			t.Error("neither a heartbeat nor a fault")
		}
		d.takeLabels(m)
		var seen lastSeen
		seen.heartbeat(m)
		seen.now = time.Unix(2, 0)
		if seen.justUp() && seen.subscribedFor < 0 {
			t.Errorf("just up after %v", seen.subscribedFor)
		}
		entry, err := auditEntry(m)
		if entry.Raw == nil {
			t.Error("an entry without its bytes")
		}
		if err == nil {
			CheckChain([]AuditEntry{entry, entry})
		}
	})
}

func TestJustUpTakesBrokerTimeAndTheDevicesWord(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tc := range []struct {
		age, subscribed time.Duration
		want            bool
	}{
		{0, 0, true},
		{2 * time.Second, 2 * time.Second, true},
		{3 * time.Second, 2 * time.Second, false},
		{0, 5 * time.Second, false},
		{0, time.Hour, false},
		{0, -1, false},
		{-time.Second, 0, true}, // the lower bound of broker time may lie before
	} {
		seen := lastSeen{read: true, heartbeatAt: now.Add(-tc.age), subscribedFor: tc.subscribed, now: now}
		if got := seen.justUp(); got != tc.want {
			t.Errorf("heartbeat %v ago, subscribed for %v: %v", tc.age, tc.subscribed, got)
		}
	}
	if (lastSeen{read: true, heartbeatAt: now}).justUp() {
		t.Error("just up without broker time")
	}
}

// TestMuxForgets holds that nothing stays of calls that ended, and that what
// comes late is dropped.
func TestMuxForgets(t *testing.T) {
	m := newMux("_INBOX.x.y.")
	events := make(chan event, 8)
	open := func(subject string) (*call, string) {
		c := &call{subject: subject, to: events}
		reply, err := m.open(c)
		if err != nil {
			t.Fatal(err)
		}
		return c, reply
	}
	answered, reply := open("a")
	dropped, late := open("a")
	refused, _ := open("a")
	other, _ := open("b")
	m.onMsg(&nats.Msg{Subject: reply})
	if !m.drop(dropped) || m.drop(dropped) || m.drop(answered) {
		t.Error("drop")
	}
	if !m.failSubject("a", natsFault(nil, "x")) || m.failSubject("a", natsFault(nil, "x")) {
		t.Error("failSubject")
	}
	m.failAll(natsFault(nil, "x"))
	m.onMsg(&nats.Msg{Subject: reply})
	m.onMsg(&nats.Msg{Subject: late})
	m.onMsg(&nats.Msg{Subject: m.prefix + "!"})
	m.onMsg(&nats.Msg{Subject: m.prefix})
	for _, want := range []*call{answered, refused, other} {
		if e := <-events; e.call != want {
			t.Errorf("event of %q, want of %q", e.call.subject, want.subject)
		}
	}
	if len(events)+len(m.calls)+len(m.bySubject) != 0 {
		t.Errorf("%d events, %d calls, %d subjects are left", len(events), len(m.calls), len(m.bySubject))
	}
	m.shut(natsFault(nil, "closed"))
	m.admit()
	if _, err := m.open(&call{to: events}); err == nil {
		t.Error("a mux that was shut takes a call")
	}
}

func TestFifoKeepsOrderAndLetsGo(t *testing.T) {
	var q fifo
	next, popped := 0, 0
	for range 5000 {
		for range 3 {
			q.push(&call{attempt: next})
			next++
		}
		for range 2 {
			if c := q.peek(); c.attempt != popped {
				t.Fatalf("popped %d, want %d", c.attempt, popped)
			}
			q.pop()
			popped++
		}
	}
	for q.peek() != nil {
		q.pop()
		popped++
	}
	if popped != next || len(q.calls) != 0 {
		t.Errorf("%d of %d, %d kept", popped, next, len(q.calls))
	}
}

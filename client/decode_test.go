package client

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

func TestStoredMessagesAreRead(t *testing.T) {
	at := "2026-01-02T15:04:05.000000001Z"
	whole := func(change func(h map[string][]string)) map[string][]string {
		h := map[string][]string{headerSubject: {"fleet.status.d1"}, headerSequence: {"7"}, headerTimeStamp: {at}}
		change(h)
		return h
	}
	for name, tc := range map[string]struct {
		header  map[string][]string
		batch   bool
		want    part
		wantErr string
	}{
		"a message":        {header: whole(func(map[string][]string) {}), want: part{end: true}},
		"one of a batch":   {header: whole(func(map[string][]string) {}), batch: true},
		"deleted":          {header: whole(func(h map[string][]string) { h[headerKVOperation] = []string{"DEL"} }), want: part{end: true, message: stored{deleted: true}}},
		"end, more":        {header: map[string][]string{headerStatus: {"204"}, headerPending: {"3"}, headerUpTo: {"9"}}, batch: true, want: part{end: true, more: true, upTo: 9}},
		"end":              {header: map[string][]string{headerStatus: {"204"}, headerPending: {"0"}}, batch: true, want: part{end: true}},
		"end without word": {header: map[string][]string{headerStatus: {"204"}}, batch: true, wantErr: headerPending},
		"nothing found":    {header: map[string][]string{headerStatus: {"404"}, headerDescription: {"Message Not Found"}}, want: part{end: true}},
		"no stream":        {header: map[string][]string{headerStatus: {"503"}}, wantErr: "fleet provision"},
		"refused":          {header: map[string][]string{headerStatus: {"413"}, headerDescription: {"Too Many Results"}}, wantErr: "Too Many Results"},
		"no sequence":      {header: whole(func(h map[string][]string) { delete(h, headerSequence) }), wantErr: headerSequence},
		"sequence 0":       {header: whole(func(h map[string][]string) { h[headerSequence] = []string{"0"} }), wantErr: headerSequence},
		"no time":          {header: whole(func(h map[string][]string) { delete(h, headerTimeStamp) }), wantErr: headerTimeStamp},
		"no subject":       {header: whole(func(h map[string][]string) { delete(h, headerSubject) }), wantErr: headerSubject},
		"no header":        {wantErr: headerSequence},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parsePart(tc.header, []byte("x"), tc.batch)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("err = %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.end != tc.want.end || got.more != tc.want.more || got.upTo != tc.want.upTo || got.message.deleted != tc.want.message.deleted {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if got.message.seq != 0 && (got.message.seq != 7 || got.message.at.Format(time.RFC3339Nano) != at) {
				t.Errorf("message %+v", got.message)
			}
		})
	}
}

func FuzzParsePart(f *testing.F) {
	f.Add("", "", "fleet.status.d1", "1", "2026-01-02T15:04:05.000000001Z", "", "", true)
	f.Add("204", "EOB", "", "", "", "7", "12", true)
	f.Add("404", "Message Not Found", "", "", "", "", "", false)
	f.Add("503", "", "", "", "", "", "", false)
	f.Add("204", "EOB", "", "", "", strings.Repeat("\xff", 1000), "12", true) // the error must not repeat it all
	f.Fuzz(func(t *testing.T, status, description, subject, seq, at, pending, upTo string, batch bool) {
		h := map[string][]string{}
		for name, value := range map[string]string{
			headerStatus: status, headerDescription: description, headerSubject: subject, headerSequence: seq,
			headerTimeStamp: at, headerPending: pending, headerUpTo: upTo,
		} {
			if value != "" {
				h[name] = []string{value}
			}
		}
		p, err := parsePart(h, nil, batch)
		switch {
		case err != nil:
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		case p.message.seq != 0 && (p.message.subject == "" || status != ""):
			t.Errorf("accepted %+v", p)
		case p.message.seq == 0 && !p.end:
			t.Errorf("neither a message nor the end: %+v", p)
		case p.more && status != "204":
			t.Errorf("more after %q", status)
		}
	})
}

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
		m := stored{subject: subject, seq: 1, at: time.Unix(1, 0), data: data}
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

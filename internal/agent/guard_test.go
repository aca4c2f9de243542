package agent

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

const goodInfo = `{"host":"127.0.0.1","id":7,"acc":"OPS","user":"https://id.example#42","name":"admin","kind":"Client","client_type":"nats","rtt":1200}`

func TestGuardTrustsOnlyTheServersHeader(t *testing.T) {
	info := func(s string) map[string][]string { return map[string][]string{requestInfoHeader: {s}} }
	for _, tc := range []struct {
		name    string
		header  map[string][]string
		refusal string // part of it; empty: accepted
	}{
		{"as the server writes it", info(goodInfo), ""},
		{"beside other headers", map[string][]string{requestInfoHeader: {goodInfo}, "X-Harmony-Protocol": {"1"}}, ""},
		{"none", nil, "no Nats-Request-Info"},
		{"empty list", map[string][]string{requestInfoHeader: {}}, "no Nats-Request-Info"},
		{"twice", map[string][]string{requestInfoHeader: {goodInfo, goodInfo}}, "more than once"},
		{"another spelling alone", map[string][]string{"nats-request-info": {goodInfo}}, "imitates"},
		{"another spelling beside it", map[string][]string{requestInfoHeader: {goodInfo}, "NATS-REQUEST-INFO": {goodInfo}}, "imitates"},
		{"a space in the name", map[string][]string{requestInfoHeader: {goodInfo}, requestInfoHeader + " ": {goodInfo}}, "imitates"},
		{"a stream's header beside it", map[string][]string{requestInfoHeader: {goodInfo}, "Nats-Sequence": {"7"}}, "begins with"},
		{"the same in another case", map[string][]string{requestInfoHeader: {goodInfo}, " nats-stream": {"AUDIT"}}, "begins with"},
		{"not JSON", info("x"), "not readable"},
		{"a list", info("[]"), "not readable"},
		{"too long", info(`{"user":"` + strings.Repeat("x", maxRequestInfo) + `"}`), "too long"},
		{"another account", info(`{"acc":"DATA","user":"ops","kind":"Client"}`), "account"},
		{"no account", info(`{"user":"ops","kind":"Client"}`), "account"},
		{"account in another case", info(`{"acc":"ops","user":"ops","kind":"Client"}`), "account"},
		{"JetStream", info(`{"acc":"OPS","user":"ops","kind":"JetStream"}`), "kind"},
		{"leaf node", info(`{"acc":"OPS","user":"ops","kind":"Leafnode"}`), "kind"},
		{"no kind", info(`{"acc":"OPS","user":"ops"}`), "kind"},
		{"no user", info(`{"acc":"OPS","name":"ops","kind":"Client"}`), "user name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guard{account: "OPS"}
			for range 2 { // the second time it may come from the cache
				caller, refusal := g.identify(tc.header)
				if (refusal == "") != (tc.refusal == "") || !strings.Contains(refusal, tc.refusal) {
					t.Fatalf("refusal %q, want %q", refusal, tc.refusal)
				}
				if refusal == "" && caller != (command.AuditCaller{User: "https://id.example#42", UID: command.UID("https://id.example#42"), Account: "OPS"}) {
					t.Errorf("caller %+v", caller)
				}
			}
		})
	}
}

func TestGuardDoesNotMixCallersUp(t *testing.T) {
	g := guard{account: "OPS"}
	for _, user := range []string{"a", "b", "a", "b"} {
		caller, refusal := g.identify(map[string][]string{requestInfoHeader: {`{"acc":"OPS","user":"` + user + `","kind":"Client"}`}})
		if refusal != "" || caller.User != user || caller.UID != command.UID(user) {
			t.Errorf("%s: %+v %s", user, caller, refusal)
		}
	}
}

func FuzzRequestInfo(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\nNats-Request-Info: " + goodInfo + "\r\n\r\n"))
	f.Add([]byte("NATS/1.0\r\nnats-request-info: " + goodInfo + "\r\n\r\n"))
	f.Add([]byte("NATS/1.0\r\nNats-Request-Info:{}\r\nNats-Request-Info :{}\r\n\r\n"))
	f.Add([]byte("NATS/1.0 503\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		header, err := nats.DecodeHeadersMsg(raw)
		if err != nil {
			return
		}
		g := guard{account: "OPS"}
		caller, refusal := g.identify(header)
		if refusal != "" {
			return
		}
		if caller.Account != "OPS" || caller.User == "" || caller.UID != command.UID(caller.User) {
			t.Errorf("accepted %+v", caller)
		}
		n := 0
		for name, values := range header {
			if strings.EqualFold(strings.TrimSpace(name), requestInfoHeader) {
				n += len(values)
			}
		}
		if n != 1 {
			t.Errorf("accepted %d identity headers", n)
		}
	})
}

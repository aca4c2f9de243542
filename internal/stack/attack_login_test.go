package stack

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func tokensOfOthers(t *testing.T) {
	a := newArena(t, Callout)
	iss := a.Issuer()
	project := issuer.RolesClaim(iss.ProjectID())
	for name, roles := range map[string][]string{"viewer": {"fleet-viewer"}, "deployer": {"fleet-deployer"}, "both": {"device", "fleet-viewer"}, "nobody": nil, "device-other-00": {"device"}} {
		must(t, iss.AddUser(issuer.User{Name: name, Roles: roles}))
	}
	other, err := issuer.Start(t.Context(), issuer.Options{Users: []issuer.User{{Name: "viewer", Roles: []string{"fleet-admin"}}}})
	must(t, err)
	t.Cleanup(other.Close)
	foreign := func(claims map[string]any) string {
		token, err := other.Mint("viewer", issuer.MintOptions{Claims: claims})
		must(t, err)
		return token
	}
	mint := func(user string, o issuer.MintOptions) string { return a.mint(t, user, o) }
	viewer := mint("viewer", issuer.MintOptions{})
	device := mint(deviceUser(hostile), issuer.MintOptions{})
	role := func(names ...string) map[string]any {
		v := map[string]any{}
		for _, n := range names {
			v[n] = map[string]string{"1": "x"}
		}
		return map[string]any{project: v}
	}

	for _, row := range []struct{ name, user, token, reason string }{
		{"expired", "", mint("viewer", issuer.MintOptions{Lifetime: -time.Minute}), "expired"},
		{"not valid yet", "", mint("viewer", issuer.MintOptions{NotBefore: time.Now().Add(time.Hour)}), ""},
		{"no expiry", "", mint("viewer", issuer.MintOptions{Claims: map[string]any{"exp": nil}}), "expired"},
		{"wrong audience", "", mint("viewer", issuer.MintOptions{Audience: []string{"999"}}), "audience"},
		{"no audience", "", mint("viewer", issuer.MintOptions{Claims: map[string]any{"aud": nil}}), "audience"},
		{"roles of another project", "", mint("viewer", issuer.MintOptions{Claims: map[string]any{project: nil, issuer.RolesClaim("999"): map[string]any{"fleet-admin": map[string]string{"1": "x"}}}}), "no_roles"},
		{"roles in the claims without a project", "", mint("nobody", issuer.MintOptions{Claims: map[string]any{"roles": []string{"fleet-admin"}, "urn:zitadel:iam:org:project:roles": role("fleet-admin")[project]}}), "no_roles"},
		{"a role of no organisation", "", mint("nobody", issuer.MintOptions{Claims: map[string]any{project: map[string]any{"fleet-admin": map[string]string{}}}}), "no_roles"},
		{"wrong key", "", mint("viewer", issuer.MintOptions{OtherKey: true}), "signature"},
		{"wrong key of another kind", "", mint("viewer", issuer.MintOptions{OtherKey: true, Algorithm: issuer.RS256}), ""},
		{"unknown key", "", mint("viewer", issuer.MintOptions{OtherKey: true, KeyID: "x"}), "unknown_key"},
		{"no signature, algorithm none", "", resigned(viewer, `{"alg":"none","typ":"JWT"}`, nil), "algorithm"},
		{"algorithm HS256", "", resigned(viewer, `{"alg":"HS256","typ":"JWT"}`, []byte("public key")), "algorithm"},
		{"another person's claims under an old signature", "", spliced(viewer, mint(adminUser, issuer.MintOptions{})), "signature"},
		{"issuer that is not configured", "", foreign(nil), "unknown_issuer"},
		{"one issuer in the name of another", "", foreign(map[string]any{"iss": iss.URL()}), "unknown_key"},
		{"no subject", "", mint("viewer", issuer.MintOptions{Claims: map[string]any{"sub": nil}}), "malformed"},
		{"a subject with a line break", "", mint("viewer", issuer.MintOptions{Claims: map[string]any{"sub": "x\ncaller=root"}}), "subject"},
		{"device and person at once", "", mint("both", issuer.MintOptions{}), "ambiguous_roles"},
		{"a device id beyond what the issuer may name", "", mint("device-other-00", issuer.MintOptions{}), "device_not_grantable"},
		{"a device id with a wildcard", "", mint(deviceUser(hostile), issuer.MintOptions{Claims: map[string]any{"client_id": "device-vm-device-*"}}), "device_id"},
		{"a device id of two tokens", "", mint(deviceUser(hostile), issuer.MintOptions{Claims: map[string]any{"client_id": "device-vm-device-00.x"}}), "device_id"},
		{"a list of device ids", "", mint(deviceUser(hostile), issuer.MintOptions{Claims: map[string]any{"client_id": []string{"device-vm-device-00", "device-vm-device-01"}}}), "device_id"},
		{"a viewer asks for data", "data", viewer, "wrong_account"},
		{"a viewer asks for fleet", "fleet", viewer, "wrong_account"},
		{"a viewer asks for deploy", "deploy", viewer, "wrong_account"},
		{"a viewer asks for SYS", "SYS", viewer, "wrong_account"},
		{"a viewer asks for sys", "sys", viewer, ""},
		{"a viewer asks for AUTH", "AUTH", viewer, "wrong_account"},
		{"a viewer asks for OPS", "OPS", viewer, "wrong_account"},
		{"a viewer calls itself the callout", broker.UserCallout, viewer, ""},
		{"a viewer calls itself a device", "device", viewer, "wrong_account"},
		{"a deployer asks for ops", "ops", mint("deployer", issuer.MintOptions{}), "wrong_account"},
		{"a device asks for ops", "ops", device, "wrong_account"},
		{"a device asks for data", "data", device, "wrong_account"},
		{"a device names another device", victim, device, "wrong_account"},
		{"no token", "ops", "", ""},
	} {
		before := strings.Count(a.log.String(), "login denied")
		nc, err := a.dial(t.Context(), tokenSource(access.Account(row.user), row.token), "_INBOX.x", "attacker")
		if err == nil {
			nc.Close()
			t.Errorf("%s: got in", row.name)
			continue
		}
		if outcome(err) != command.OutcomeDenied {
			t.Errorf("%s: %v", row.name, err)
		}
		if row.reason == "" {
			continue
		}
		lines := strings.Split(a.log.String(), "login denied")
		if len(lines) <= before+1 || !strings.Contains(lines[before+1], "reason="+row.reason) {
			t.Errorf("%s: not refused as %s", row.name, row.reason)
		}
	}
	for user, password := range map[string]string{broker.UserCallout: viewer, "ops": "x", "data": "", "sys": "", "device": device} {
		nc, err := a.dial(t.Context(), credentials.Static(credentials.Credential{User: user, Password: password}), "_INBOX.x", "attacker")
		if err == nil {
			nc.Close()
			t.Errorf("user %s: got in with a password", user)
		}
	}
}

// resigned is a token with another header, and a keyed hash as signature.
func resigned(token, header string, key []byte) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + strings.Split(token, ".")[1]
	if key == nil {
		return text + "."
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// spliced is a token with the claims of another one.
func spliced(token, claims string) string {
	parts := strings.Split(token, ".")
	parts[1] = strings.Split(claims, ".")[1]
	return strings.Join(parts, ".")
}

// anotherDevicesKey: the key decides, whatever the
// agent's configuration says.
func anotherDevicesKey(t *testing.T) {
	a := newArena(t, Callout)
	must(t, a.StopAgent(victim))
	creds, err := a.deviceCredentials(hostile)
	must(t, err)
	var ran atomic.Int64
	impostor, err := agent.New(agent.Options{
		DeviceID: victim, NATS: natsconn.Config{URLs: []string{a.NATSURL()}, Credentials: creds, Options: natsconn.Soon()},
		Handlers: map[command.Verb]agent.Handler{command.VerbExec: agent.HandlerFunc(func(context.Context, *agent.Request) (any, error) {
			ran.Add(1)
			return nil, nil
		})},
		RetryMin: 20 * time.Millisecond, RetryMax: 20 * time.Millisecond,
		Logger: a.Stack.log,
	})
	must(t, err)
	r := a.start("impostor", impostor.Run)
	testwait.For(t, patience, "the refusal in its log", func() bool {
		return strings.Contains(a.log.String(), "reason=connection_name")
	})
	_, err = a.ops.RequestMsg(&nats.Msg{Subject: command.Subject(victim, command.VerbExec), Header: a.valid(), Data: []byte("{}")}, patience)
	if !errors.Is(err, nats.ErrNoResponders) || ran.Load() != 0 {
		t.Errorf("%v, ran %d times", err, ran.Load())
	}
	must(t, r.stop())
}

// flood has one caller send 10,000 commands without
// a pause: each that is answered is answered with ok or busy, and meanwhile and
// afterwards others are served.
func flood(t *testing.T) {
	a := newArena(t, Callout)
	other := a.person(t, access.Ops, access.RoleOps)
	data, err := a.DataConn(t.Context())
	must(t, err)
	const n, good = 10_000, `{"argv":["true"],"host":true}`
	for _, verb := range []command.Verb{command.VerbPing, command.VerbExec} {
		var answers atomic.Int64
		inbox := a.ops.InboxPrefix + ".flood." + string(verb)
		sub, err := a.ops.Subscribe(inbox, func(m *nats.Msg) {
			if got := outcomeOf(m); got != "ok" && got != "busy" {
				t.Errorf("%s: %s %s", verb, got, m.Data)
			}
			answers.Add(1)
		})
		must(t, err)
		must(t, sub.SetPendingLimits(-1, -1))
		for i := range n {
			must(t, a.ops.PublishMsg(&nats.Msg{Subject: command.Subject(victim, verb), Reply: inbox, Header: a.valid(), Data: []byte(good)}))
			if i%2000 == 0 {
				pings(t, a.Client(), victim)
			}
		}
		must(t, a.ops.Flush())
		pings(t, a.Client(), victim)
		// More than 8,192 may not wait for the agent.
		testwait.For(t, patience, "answers", func() bool { return answers.Load() >= 8192 })
		t.Logf("%s: %d of %d answered, exec ran %d times", verb, answers.Load(), n, a.runs.Load())
		must(t, sub.Unsubscribe())
		// Whoever may exec can also use up the request ids that the device remembers,
		// until their deadlines have passed: others are told so, and served beside.
		if got := outcomeOf(other.command(t, victim, command.VerbExec, a.valid(), good)); got != "ok" && (got != "busy" || verb == command.VerbPing) {
			t.Errorf("exec of another caller after the flood of %s: %s", verb, got)
		}
		last := a.valid()
		if got := outcomeOf(other.command(t, victim, command.VerbPing, last, "")); got != "ok" {
			t.Errorf("ping of another caller: %s", got)
		}
		read := access.DirectGetLast(access.StreamAudit, command.AuditSubject(victim, command.VerbPing))
		testwait.For(t, patience, "the last ping in the audit, behind the flood", func() bool {
			m, err := data.Request(read, nil, patience)
			must(t, err)
			return strings.Contains(string(m.Data), last.Get(command.HeaderRequestID))
		})
	}
}

// secretsInLogs records everything that all parts log, the broker
// included, while people and devices sign in, are refused, and send secrets of
// all kinds.
func secretsInLogs(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		a := newArena(t, auth)
		const marker = "hunter2hunter2"
		sid := command.NewSessionID()
		secret := map[string]string{"payload": marker, "number": "31415926535", "session id": sid}
		for what, s := range map[string]string{"ops": a.secrets.Ops, "data": a.secrets.Data, "device": a.secrets.Device, "callout": a.secrets.Callout} {
			secret["password of "+what] = s
		}
		if auth == Callout {
			for _, id := range []string{hostile, victim} {
				key, err := os.ReadFile(a.dir.keyFile(id))
				must(t, err)
				lines := strings.Split(string(key), `\n`)
				secret["key of "+id] = lines[len(lines)/2]
			}
			secret["seed of the callout"] = strings.TrimSpace(string(a.seeds.Issuer))
			secret["xkey of the callout"] = strings.TrimSpace(string(a.seeds.XKey))
			secret["admin token"] = signature(a.AdminToken())
			secret["token"] = signature(a.ops.Token)
			for what, o := range map[string]issuer.MintOptions{
				"expired": {Lifetime: -time.Hour}, "wrong key": {OtherKey: true}, "unknown key": {OtherKey: true, KeyID: "x"},
				"wrong audience": {Audience: []string{"x"}}, "no roles": {Roles: []string{}},
			} {
				token := a.mint(t, adminUser, o)
				secret[what+" token"] = signature(token)
				for _, c := range []credentials.Credential{{Token: token}, {User: "ops", Token: token}, {User: "ops", Password: token}, {User: "callout", Password: token}, {User: "x", Token: token, Password: marker}} {
					if nc, err := a.dial(t.Context(), credentials.Static(c), "_INBOX.x", "attacker"); err == nil {
						nc.Close()
						t.Errorf("%s: got in", what)
					} else if strings.Contains(err.Error(), signature(token)) {
						t.Errorf("%s: the error holds the token", what)
					}
				}
			}
		}
		for _, user := range []string{"ops", "data", "device", "callout", "sys", "nobody"} {
			if nc, err := a.dial(t.Context(), credentials.Static(credentials.Credential{User: user, Password: marker}), "_INBOX.x", "attacker"); err == nil {
				nc.Close()
				t.Errorf("%s got in", user)
			}
		}
		for _, payload := range []string{
			`{"argv":["login","` + marker + `"],"host":true,"env":{"PASSWORD":"` + marker + `"},"stdin":"` + marker + `"}`,
			`{"argv":["` + marker, `{"argv":"` + marker + `"}`, `{"argv":[31415926535]}`, `{"env":{"PIN":31415926535}}`, `{"rows":31415926535,"host":"` + marker + `"}`,
			`"` + marker + `"`, marker, `{"argv":["a"],"session":{"id":"` + sid + `","credit":"x"}}`, `{"argv":["a"]}` + marker,
		} {
			a.ops.command(t, victim, command.VerbExec, a.valid(), payload)
			a.ops.command(t, victim, command.VerbPing, nats.Header{}, payload)
			a.ops.command(t, victim, command.VerbResult, nats.Header{}, payload)
		}
		for _, op := range []command.SessionOp{command.OpIn, command.OpCancel, "x"} {
			must(t, a.ops.Publish(command.SessionControlSubject(victim, a.ops.UID, sid, op), []byte(marker)))
		}
		id := command.NewRequestID()
		a.ops.command(t, victim, command.VerbPing, nats.Header{command.HeaderRequestID: {id}}, "")
		a.awaitRecord(t, "the last", func(r command.AuditRecord) bool { return r.RequestID == id })

		written := a.log.String()
		for e := range a.Client().Audit(t.Context(), client.AuditFilter{}) {
			written += "\naudit " + string(e.Raw)
		}
		for what, s := range secret {
			if s == "" {
				continue
			}
			if at := strings.Index(written, s); at >= 0 {
				line := written[strings.LastIndexByte(written[:at], '\n')+1:]
				line, _, _ = strings.Cut(line, "\n")
				t.Errorf("%s is written: %s", what, line)
			}
		}
		for _, s := range []string{"part=nats-server", "part=agent", "msg=command", "\naudit "} {
			if !strings.Contains(written, s) {
				t.Errorf("the log has no %q", s)
			}
		}
	})
}

// signature is the part of a token without which the rest is of no use.
func signature(token string) string { return token[strings.LastIndexByte(token, '.')+1:] }

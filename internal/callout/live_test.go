package callout

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestEveryoneLandsInTheRightAccount(t *testing.T) {
	e := newEnv(t)
	e.serve(t, nil)
	tests := []struct {
		user, field, account, device string
	}{
		{"admin", "", "OPS", ""},
		{"admin", "ops", "OPS", ""},
		{"admin", "data", "DATA", ""},
		{"viewer", "", "OPS", ""},
		{"deployer", "", "DEPLOY", ""},
		{"deployer", "data", "DEPLOY", ""},
		{"device-vm-1", "", "FLEET", "vm-1"},
		{"device-vm-1", "fleet", "FLEET", "vm-1"},
	}
	for _, tt := range tests {
		t.Run(tt.user+"/"+tt.field, func(t *testing.T) {
			inbox := e.inbox(tt.user)
			if tt.device != "" {
				inbox = nats.CustomInboxPrefix(command.DeviceInboxPrefix(tt.device))
			}
			opts := []nats.Option{inbox}
			if tt.field != "" {
				opts = append(opts, nats.UserInfo(tt.field, ""))
			}
			info := whoami(t, e.mustDial(t, e.token(t, tt.user, issuer.MintOptions{Lifetime: time.Hour}), opts...))
			if info.Account != tt.account {
				t.Errorf("account = %s", info.Account)
			}
			name := command.UserName(e.issuer.URL(), e.issuer.UserID(tt.user))
			if tt.device == "" && info.User != name {
				t.Errorf("user = %q, want %q", info.User, name)
			}
			if tt.device != "" && strings.Contains(info.User, "#") {
				t.Errorf("a device has a name: %q", info.User)
			}
			if info.Expires <= 50*time.Minute || info.Expires > time.Hour {
				t.Errorf("expires in %v, want a tenth of jitter at most below an hour", info.Expires)
			}
			if len(info.Perms.Pub.Allow) == 0 {
				t.Error("no permissions are set, which means all")
			}
		})
	}
	// The password field, for clients that know nothing else.
	nc, err := nats.Connect(e.broker.ClientURL(), nats.UserInfo("data", e.token(t, "admin", issuer.MintOptions{})), e.inbox("admin"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if got := whoami(t, nc).Account; got != "DATA" {
		t.Errorf("account by password field = %s", got)
	}
}

func TestDenialsAreQuickLoggedAndWithoutTheToken(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	mint := func(user string, o issuer.MintOptions) string { return e.token(t, user, o) }
	otherProject := map[string]any{
		projectRolesClaim(e.issuer.ProjectID()):   nil,
		projectRolesClaim("999"):                  map[string]any{"fleet-admin": map[string]any{"1": "x"}},
		"urn:zitadel:iam:org:project:roles":       map[string]any{"fleet-admin": map[string]any{"1": "x"}},
		"roles":                                   []string{"fleet-admin"},
		"urn:zitadel:iam:org:project:999:roles:x": 1,
	}
	tests := []struct {
		name   string
		token  string
		field  string
		reason Reason
	}{
		{"expired", mint("admin", issuer.MintOptions{Lifetime: -time.Hour}), "", "expired"},
		{"wrong signature", mint("admin", issuer.MintOptions{OtherKey: true}), "", "signature"},
		{"unknown key", mint("admin", issuer.MintOptions{KeyID: "nope"}), "", "unknown_key"},
		{"wrong audience", mint("admin", issuer.MintOptions{Audience: []string{"other"}}), "", "audience"},
		{"not yet valid", mint("admin", issuer.MintOptions{NotBefore: time.Now().Add(time.Hour)}), "", "not_yet_valid"},
		{"unknown issuer", mint("admin", issuer.MintOptions{Claims: map[string]any{"iss": "https://evil.example"}}), "", ReasonUnknownIssuer},
		{"junk", "junk-junk-junk-junk-junk", "", "malformed"},
		{"none", "", "", ReasonNoToken},
		{"roles of another project", mint("admin", issuer.MintOptions{Claims: otherProject}), "", ReasonNoRoles},
		{"no roles", mint("nobody", issuer.MintOptions{}), "", ReasonNoRoles},
		{"not grantable", mint("controller", issuer.MintOptions{}), "", ReasonRoleNotGrantable},
		{"device and person", mint("both", issuer.MintOptions{}), "", ReasonAmbiguousRoles},
		{"viewer to data", mint("viewer", issuer.MintOptions{}), "data", ReasonWrongAccount},
		{"deployer to ops", mint("deployer", issuer.MintOptions{}), "ops", ReasonWrongAccount},
		{"unheard-of account", mint("admin", issuer.MintOptions{}), "sys", ReasonWrongAccount},
		{"device to data", mint("device-vm-1", issuer.MintOptions{}), "data", ReasonWrongAccount},
		{"device outside the glob", mint("device-lab-1", issuer.MintOptions{}), "", ReasonDevice},
		{"bad device id", mint("device-vm_bad", issuer.MintOptions{}), "", ReasonDeviceID},
		{"no device prefix", mint("vm-3", issuer.MintOptions{}), "", ReasonDeviceID},
		{"forged probe", probePrefix + "1.00.AAAA", "", "malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := c.metric(t, "fleet_callout_requests_total", "denied", string(tt.reason))
			var opts []nats.Option
			if tt.field != "" {
				opts = append(opts, nats.UserInfo(tt.field, ""))
			}
			start := time.Now()
			nc, err := e.dial(tt.token, opts...)
			if err == nil {
				nc.Close()
				t.Fatal("let in")
			}
			if !errors.Is(err, nats.ErrAuthorization) {
				t.Errorf("err = %v", err)
			}
			if d := time.Since(start); d > soon {
				t.Errorf("the denial took %v", d)
			}
			if n := c.metric(t, "fleet_callout_requests_total", "denied", string(tt.reason)); n != before+1 {
				t.Errorf("counted %v denials for %s, want 1\n%s", n-before, tt.reason, e.logs)
			}
			if !strings.Contains(e.logs.String(), "reason="+string(tt.reason)+" ") {
				t.Errorf("no log line with the reason:\n%s", e.logs)
			}
			if len(tt.token) > 40 && strings.Contains(e.logs.String(), tt.token[len(tt.token)-20:]) {
				t.Error("the log has the token")
			}
		})
	}
	if n := e.logs.count("login denied"); n != len(tests) {
		t.Errorf("%d denial lines, want %d", n, len(tests))
	}
}

func TestAnUnencryptedServerIsRefusedWhereAnXKeyIsConfigured(t *testing.T) {
	e := newEnv(t)
	e.broker.Close()
	e.cfg.Callout.XKey = ""
	e.startBroker(t)
	e.start(t, nil)
	testwait.For(t, 5*time.Second, "the denial", func() bool {
		if nc, err := e.dial(e.token(t, "admin", issuer.MintOptions{})); err == nil {
			nc.Close()
			t.Fatal("let in")
		}
		return e.logs.count("reason=unencrypted") > 0
	})
}

func TestWithoutXKeyLoginsWorkUnencrypted(t *testing.T) {
	e := newEnv(t)
	e.broker.Close()
	e.cfg.Callout.XKey = ""
	e.startBroker(t)
	e.seeds.XKey = nil
	e.serve(t, nil)
	e.mustDial(t, e.token(t, "admin", issuer.MintOptions{}))
}

func TestServerWithOtherKeysIsToldSoInTheLog(t *testing.T) {
	e := newEnv(t)
	other, err := NewSeeds()
	if err != nil {
		t.Fatal(err)
	}
	e.seeds.Issuer = other.Issuer
	e.start(t, nil)
	testwait.For(t, 5*time.Second, "the mismatch in the log", func() bool {
		if nc, err := e.dial("x"); err == nil {
			nc.Close()
		}
		return e.logs.count("compare auth_callout.issuer") > 0
	})
}

// TestManyLoginsAtOnce has fewer of them under the race detector, which makes
// each ten times as slow: an answer that comes after the server has given up on
// the client sets off a race of nats-server 2.15.2's own (auth_callout.go clears
// the token that client.go's authViolation reads).
func TestManyLoginsAtOnce(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	n := 500
	if raceEnabled {
		n = 50
	}
	token := e.token(t, "device-vm-1", issuer.MintOptions{})
	conns := e.crowd(t, n, token)
	testwait.For(t, 120*time.Second, "all to be let in", func() bool { return connected(conns) == n })
	if got := c.metric(t, "fleet_callout_requests_total", "allowed"); got < float64(n) {
		t.Errorf("allowed = %v", got)
	}
	if got := c.metric(t, "fleet_callout_requests_total", "denied"); got > 0 {
		t.Errorf("denied = %v", got)
	}
	testwait.For(t, 5*time.Second, "the queue to be empty", func() bool { return c.metric(t, "fleet_callout_queue_depth") == 0 })
}

func TestTwoCalloutsShareTheWorkAndOneMayGo(t *testing.T) {
	e := newEnv(t)
	a, b := e.serve(t, nil), e.serve(t, nil)
	token := e.token(t, "viewer", issuer.MintOptions{})
	allowed := func(c *callout) float64 { return c.metric(t, "fleet_callout_requests_total", "allowed") }
	testwait.For(t, 20*time.Second, "both to have answered", func() bool {
		e.mustDial(t, token).Close()
		return allowed(a) > 0 && allowed(b) > 0
	})
	stopped := make(chan struct{})
	go func() { defer close(stopped); a.stop(t) }()
	for i := range 50 { // while one is stopping, and after
		nc, err := e.dial(token)
		if err != nil {
			t.Fatalf("login %d while the other callout stops: %v\n%s", i, err, e.logs)
		}
		nc.Close()
	}
	<-stopped
	e.mustDial(t, token)
}

func TestEndpoints(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, func(cfg *Config) { cfg.Listen = "127.0.0.1:0" })
	e.mustDial(t, e.token(t, "viewer", issuer.MintOptions{}))
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + c.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	defer http.DefaultClient.CloseIdleConnections()
	if code, body := get("/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if code, body := get("/readyz"); code != 200 {
		t.Errorf("/readyz: %d %s", code, body)
	}
	_, metrics := get("/metrics")
	for _, want := range []string{
		`fleet_callout_requests_total{reason="",result="allowed"} 1`, "fleet_callout_queue_depth 0", "fleet_callout_ready 1",
		`fleet_callout_dropped_total{why="stale"} 0`, fmt.Sprintf(`fleet_callout_issuer_fetches_total{issuer=%q,result="ok"}`, e.issuer.URL()),
		"fleet_callout_issuer_keys_age_seconds", "fleet_callout_request_duration_seconds_bucket", `result="probe"`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	e.broker.Close()
	testwait.For(t, 5*time.Second, "not ready without a server", func() bool { code, _ := get("/readyz"); return code == 503 })
	if code, _ := get("/healthz"); code != 200 {
		t.Error("/healthz must not depend on the server")
	}
}

func TestLoginsWaitForTheFirstKeysRatherThanBeingDenied(t *testing.T) {
	e := newEnv(t)
	e.issuer.SetFaults(issuer.Faults{Delay: 150 * time.Millisecond})
	e.keysFirst = 30 * time.Second
	c := e.start(t, nil)
	conns := e.crowd(t, 100, e.token(t, "device-vm-1", issuer.MintOptions{}))
	testwait.For(t, 60*time.Second, "all to be let in", func() bool { return connected(conns) == 100 })
	if n := c.metric(t, "fleet_callout_requests_total", "denied"); n > 0 {
		t.Errorf("%v denied", n)
	}
}

func TestAddressInUseIsAnError(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, func(cfg *Config) { cfg.Listen = "127.0.0.1:0" })
	cfg := e.config()
	cfg.Listen = c.Addr()
	svc, err := New(Options{Config: cfg, Seeds: e.seeds})
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("err = %v", err)
	}
}

// TestADevicesConnectionEndsUnderItsOwnName: the server's event of a connection's end
// has the connection's name, and no device gets in under another's.
func TestADevicesConnectionEndsUnderItsOwnName(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	owner := e.mustDial(t, e.token(t, "admin", issuer.MintOptions{}), nats.UserInfo("data", ""), e.inbox("admin"))
	events, err := owner.SubscribeSync(access.Disconnected)
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Flush(); err != nil {
		t.Fatal(err)
	}
	token := e.token(t, "device-vm-1", issuer.MintOptions{})
	for _, forged := range []string{command.ConnectionName("vm-2"), command.ConnectionName(""), command.ConnectionName("vm-1 ")} {
		if nc, err := e.dial(token, nats.Name(forged)); err == nil {
			nc.Close()
			t.Errorf("let in as %q", forged)
		}
	}
	if n := c.metric(t, "fleet_callout_requests_total", "denied", string(ReasonConnectionName)); n != 3 {
		t.Errorf("%v denials", n)
	}
	for _, name := range []string{"another program", command.ConnectionName("vm-1")} {
		e.mustDial(t, token, nats.Name(name)).Close()
	}
	for range 2 {
		m, err := events.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		d, err := broker.ReadDisconnect(m.Data)
		if err == nil && d.Device == "vm-1" {
			if strings.Contains(string(m.Data), token[:20]) {
				t.Errorf("the event has the token: %s", m.Data)
			}
			return
		}
		if err == nil {
			t.Errorf("%+v", d)
		}
	}
	t.Error("no event of the device")
}

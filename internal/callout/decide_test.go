package callout

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

const testIssuerURL = "https://zitadel.example"

func testIssuer(edit func(*Issuer)) *Issuer {
	cfg := Config{Issuers: []Issuer{{
		URL: testIssuerURL, Audience: "p1", ProjectID: "p1", Roles: access.Roles(), Devices: "vm-*",
	}}}
	if edit != nil {
		edit(&cfg.Issuers[0])
	}
	cfg.setDefaults()
	return &cfg.Issuers[0]
}

func claimsOf(t testing.TB, sub, raw string) oidcverify.Claims {
	t.Helper()
	c := oidcverify.Claims{Issuer: testIssuerURL, Subject: sub}
	if err := json.Unmarshal([]byte(raw), &c.Raw); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDecide(t *testing.T) {
	p1 := func(roles ...string) string {
		var members []string
		for _, r := range roles {
			members = append(members, `"`+r+`":{"org1":"example"}`)
		}
		return `"urn:zitadel:iam:org:project:p1:roles":{` + strings.Join(members, ",") + `}`
	}
	noProject := func(i *Issuer) { i.ProjectID = "" }
	kube := func(i *Issuer) {
		i.ProjectID = ""
		i.Subjects = []Subject{
			{Subject: "system:serviceaccount:fleet:operator", Roles: []access.Role{access.RoleController}},
			{Subject: "system:serviceaccount:fleet:agent", Roles: []access.Role{access.RoleDevice}, DeviceID: "vm-k8s"},
			{Subject: "system:serviceaccount:fleet:agents", Roles: []access.Role{access.RoleDevice}},
		}
	}
	for _, tt := range []struct {
		name    string
		issuer  func(*Issuer)
		sub     string
		claims  string
		field   string
		account access.Account
		device  string
		reason  Reason
	}{
		{name: "viewer", claims: p1("fleet-viewer"), account: access.Ops},
		{name: "deployer", claims: p1("fleet-deployer"), account: access.Deploy},
		{name: "controller", claims: p1("fleet-controller"), account: access.Data},
		{name: "admin", claims: p1("fleet-admin"), account: access.Ops},
		{name: "admin asks for data", claims: p1("fleet-admin"), field: "data", account: access.Data},
		{name: "viewer and deployer", claims: p1("fleet-viewer", "fleet-deployer"), account: access.Ops},
		{name: "viewer and deployer to data", claims: p1("fleet-viewer", "fleet-deployer"), field: "data", account: access.Deploy},
		{name: "viewer to data", claims: p1("fleet-viewer"), field: "data", reason: ReasonWrongAccount},
		{name: "deployer to ops", claims: p1("fleet-deployer"), field: "ops", reason: ReasonWrongAccount},
		{name: "person to fleet", claims: p1("fleet-admin"), field: "fleet", reason: ReasonWrongAccount},
		{name: "field in capitals", claims: p1("fleet-admin"), field: "OPS", reason: ReasonWrongAccount},
		{name: "callout as field", claims: p1("fleet-admin"), field: "callout", reason: ReasonWrongAccount},

		{name: "device", claims: p1("device") + `,"client_id":"device-vm-7"`, account: access.Fleet, device: "vm-7"},
		{name: "device asks for ops", claims: p1("device") + `,"client_id":"device-vm-7"`, field: "ops", reason: ReasonWrongAccount},
		{name: "device outside glob", claims: p1("device") + `,"client_id":"device-db-7"`, reason: ReasonDevice},
		{name: "device wildcard", claims: p1("device") + `,"client_id":"device-*"`, reason: ReasonDeviceID},
		{name: "device dot", claims: p1("device") + `,"client_id":"device-vm-1.exec"`, reason: ReasonDeviceID},
		{name: "device gt", claims: p1("device") + `,"client_id":"device-vm->"`, reason: ReasonDeviceID},
		{name: "device empty", claims: p1("device") + `,"client_id":"device-"`, reason: ReasonDeviceID},
		{name: "device no claim", claims: p1("device"), reason: ReasonDeviceID},
		{name: "device claim number", claims: p1("device") + `,"client_id":7`, reason: ReasonDeviceID},
		{name: "device capitals", claims: p1("device") + `,"client_id":"device-VM-1"`, reason: ReasonDeviceID},
		{name: "device other claim", claims: p1("device") + `,"azp":"vm-9"`, account: access.Fleet, device: "vm-9",
			issuer: func(i *Issuer) { i.DeviceIDClaim, i.DeviceIDPrefix = "azp", new(string) }},
		{name: "device and viewer", claims: p1("device", "fleet-viewer") + `,"client_id":"device-vm-7"`, reason: ReasonAmbiguousRoles},
		{name: "no devices configured", claims: p1("device") + `,"client_id":"device-vm-7"`, issuer: func(i *Issuer) { i.Devices = "" }, reason: ReasonDevice},

		{name: "other project", claims: `"urn:zitadel:iam:org:project:p2:roles":{"fleet-admin":{"o":"d"}}`, reason: ReasonNoRoles},
		{name: "plain claim beside a project", claims: `"urn:zitadel:iam:org:project:roles":{"fleet-admin":{"o":"d"}}`, reason: ReasonNoRoles},
		{name: "roles array beside a project", claims: `"roles":["fleet-admin"]`, reason: ReasonNoRoles},
		{name: "plain claim, opted in", claims: `"urn:zitadel:iam:org:project:roles":{"fleet-admin":{"o":"d"}}`, issuer: func(i *Issuer) { i.PlainRoles = true }, account: access.Ops},
		{name: "plain claim, no project", claims: `"urn:zitadel:iam:org:project:roles":{"fleet-viewer":{"o":"d"}}`, issuer: noProject, account: access.Ops},
		{name: "roles array, no project", claims: `"roles":["x","fleet-deployer",7]`, issuer: noProject, account: access.Deploy},
		{name: "role in no organisation", claims: `"urn:zitadel:iam:org:project:p1:roles":{"fleet-admin":{}}`, reason: ReasonNoRoles},
		{name: "claim of the wrong form", claims: `"urn:zitadel:iam:org:project:p1:roles":"fleet-admin"`, reason: ReasonNoRoles},
		{name: "unknown roles", claims: p1("root", "Fleet-Admin", " fleet-admin"), reason: ReasonNoRoles},
		{name: "not grantable", claims: p1("fleet-admin"), issuer: func(i *Issuer) { i.Roles = []access.Role{access.RoleViewer} }, reason: ReasonRoleNotGrantable},
		{name: "partly grantable", claims: p1("fleet-admin", "fleet-viewer"), issuer: func(i *Issuer) { i.Roles = []access.Role{access.RoleViewer} }, account: access.Ops},
		{name: "partly grantable to data", claims: p1("fleet-admin", "fleet-viewer"), field: "data", issuer: func(i *Issuer) { i.Roles = []access.Role{access.RoleViewer} }, reason: ReasonWrongAccount},

		{name: "service account", issuer: kube, sub: "system:serviceaccount:fleet:operator", account: access.Data},
		{name: "service account device", issuer: kube, sub: "system:serviceaccount:fleet:agent", account: access.Fleet, device: "vm-k8s"},
		{name: "service account device without id", issuer: kube, sub: "system:serviceaccount:fleet:agents", reason: ReasonDeviceID},
		{name: "service account elsewhere", issuer: kube, sub: "system:serviceaccount:other:operator", reason: ReasonNoRoles},
		{name: "subject with a newline", sub: "a\nb", claims: p1("fleet-admin"), reason: ReasonSubject},
		{name: "long subject", sub: strings.Repeat("s", 256), claims: p1("fleet-admin"), reason: ReasonSubject},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := tt.sub
			if sub == "" {
				sub = "277"
			}
			d, err := decide(testIssuer(tt.issuer), claimsOf(t, sub, "{"+tt.claims+"}"), tt.field)
			if tt.reason != "" {
				var denial *Denial
				if !errors.As(err, &denial) || denial.Reason != tt.reason {
					t.Fatalf("decision %+v, err = %v, want %s", d, err, tt.reason)
				}
				if len(d.Perms.Publish)+len(d.Perms.Subscribe) > 0 || d.Account != "" {
					t.Errorf("a denial with permissions: %+v", d)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.Account != tt.account || d.Device != tt.device {
				t.Errorf("decision = %+v", d)
			}
			if (d.Device == "") != (d.Name == testIssuerURL+"#"+sub) {
				t.Errorf("name = %q", d.Name)
			}
			if tt.device != "" && !slices.Contains(d.Perms.Subscribe, command.Subscription(tt.device)) {
				t.Errorf("permissions = %+v", d.Perms)
			}
		})
	}
}

func TestSessionExpiry(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name       string
		token, cap time.Duration
		frac       float64
		want       time.Duration // 0: denied
	}{
		{"token", time.Hour, 12 * time.Hour, 0, time.Hour},
		{"capped", 24 * time.Hour, 12 * time.Hour, 0, 12 * time.Hour},
		{"a tenth off at most", time.Hour, 12 * time.Hour, 1, 54 * time.Minute},
		{"ten minutes off at most", 12 * time.Hour, 12 * time.Hour, 1, 12*time.Hour - 10*time.Minute},
		{"forgiven by leeway, but over", -10 * time.Second, time.Hour, 0, 0},
		{"nearly over", 500 * time.Millisecond, time.Hour, 0, 0},
		{"short", 10 * time.Second, time.Hour, .5, 9 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			end, err := expiry(now, now.Add(tt.token), tt.cap, tt.frac)
			if tt.want == 0 {
				if denialOf(err).Reason != reasonExpired {
					t.Errorf("end = %v, err = %v", end, err)
				}
				return
			}
			if err != nil || end.Sub(now) != tt.want {
				t.Errorf("lives %v, %v, want %v", end.Sub(now), err, tt.want)
			}
		})
	}
}

func FuzzRolesClaim(f *testing.F) {
	f.Add(`{"fleet-admin":{"1":"x"}}`, "device-vm-1", "ops")
	f.Add(`["device"]`, "device-*", "")
	f.Add(`null`, "", "data")
	f.Fuzz(func(t *testing.T, claim, client, field string) {
		var v any
		if json.Unmarshal([]byte(claim), &v) != nil {
			return
		}
		iss := testIssuer(func(i *Issuer) { i.Roles = []access.Role{access.RoleViewer, access.RoleDevice} })
		d, err := decide(iss, oidcverify.Claims{Issuer: testIssuerURL, Subject: "1",
			Raw: map[string]any{projectRolesClaim("p1"): v, "client_id": client}}, field)
		if err != nil {
			if denialOf(err).Reason == ReasonInternal {
				t.Errorf("internal: %v", err)
			}
			return
		}
		switch d.Account {
		case access.Ops:
		case access.Fleet:
			if command.CheckDeviceID(d.Device) != nil || !strings.HasPrefix(d.Device, "vm-") {
				t.Errorf("device %q", d.Device)
			}
		default:
			t.Errorf("account %q", d.Account)
		}
	})
}

func TestTokenInTheUserFieldStaysOutOfTheLog(t *testing.T) {
	token := "eyJhbGciOiJFUzI1NiJ9." + strings.Repeat("x", 200)
	_, err := chooseAccount([]access.Role{access.RoleAdmin}, token)
	if err == nil || strings.Contains(err.Error(), "eyJ") {
		t.Errorf("err = %v", err)
	}
}

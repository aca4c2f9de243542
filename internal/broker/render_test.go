package broker

import (
	"crypto/tls"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/access"
)

var update = flag.Bool("update", false, "write testdata/*.conf")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testIssuer = "ABJHLOVMPA4CI6R5KLNGOB4GSLNIY7IOUPAJC4YFNDLQVIOBYQGUWVLA"
	testXKey   = "XAB3NANV3M6N7AHSQP2U5FRWKKUT7EG2ZXXABV4XVXYQRJGM4S2CZGHT"
)

func configs() map[string]Config {
	userPass := &UserPass{Ops: "ops-password", Data: "data-password", Device: "device-password"}
	callout := &Callout{Issuer: testIssuer, XKey: testXKey, Password: "callout-password"}
	cluster := &Cluster{Name: "fleet", Port: 6222, Password: "cluster password", Routes: []string{"nats-route://nats-1:6222", "nats-route://nats-2:6222"}}
	return map[string]Config{
		"userpass": {StoreDir: "/var/lib/nats", UserPass: userPass},
		"callout":  {StoreDir: "/var/lib/nats", Callout: callout, SystemPassword: "system-password"},
		"cluster-tls": {
			ServerName: "nats-0", Host: "0.0.0.0", Port: 4333, HTTPPort: 8222, StoreDir: "/var/lib/nats", Callout: callout, Cluster: cluster,
			TLS:      &TLS{CertFile: "testdata/tls.crt", KeyFile: "testdata/tls.key", CAFile: "testdata/ca.crt", VerifyClients: true},
			Accounts: access.Accounts{Ops: "T1-OPS", Data: "T1-DATA", Deploy: "T1-DEPLOY", Fleet: "T1-FLEET"},
		},
	}
}

func TestRenderedConfigurationIsPinned(t *testing.T) {
	for name, cfg := range configs() {
		t.Run(name, func(t *testing.T) {
			text, err := cfg.Render()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".conf")
			if *update {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != text {
				t.Errorf("%s differs; run go test -update and read the change", path)
			}
		})
	}
}

func TestTheServerReadsWhatIsRendered(t *testing.T) {
	for name, cfg := range configs() {
		t.Run(name, func(t *testing.T) {
			secure := cfg.TLS != nil
			if secure {
				cfg.TLS = testCertificates(t)
			}
			text, err := cfg.Render()
			if err != nil {
				t.Fatal(err)
			}
			opts := &server.Options{}
			if err := opts.ProcessConfigString(text); err != nil {
				t.Fatal(err)
			}
			if opts.MaxControlLine != 16<<10 || opts.PingInterval != 15*time.Second || opts.MaxPingsOut != 2 || !opts.JetStream || opts.StoreDir != "/var/lib/nats" {
				t.Errorf("control line %d, ping %v, outstanding %d, store %q", opts.MaxControlLine, opts.PingInterval, opts.MaxPingsOut, opts.StoreDir)
			}
			if len(opts.Accounts) != 6 {
				t.Errorf("%d accounts", len(opts.Accounts))
			}
			if (opts.AuthCallout != nil) != (cfg.Callout != nil) {
				t.Errorf("callout %+v", opts.AuthCallout)
			}
			if (opts.TLSConfig != nil) != secure {
				t.Errorf("TLS %+v", opts.TLSConfig)
			} else if secure && opts.TLSConfig.ClientAuth != tls.RequireAndVerifyClientCert {
				t.Errorf("clients' certificates: %v", opts.TLSConfig.ClientAuth)
			}
			for _, u := range opts.Users {
				// No user is without limits: an empty list means everything.
				if u.Username != UserSystem && (u.Permissions == nil || len(u.Permissions.Publish.Allow) == 0 || len(u.Permissions.Subscribe.Allow) == 0) {
					t.Errorf("user %s has no limits", u.Username)
				}
			}
		})
	}
}

func TestPasswordsSurviveRendering(t *testing.T) {
	for _, password := range []string{"plain", `quote " and \ back`, "$2 is not a hash", "$PASS", "16KB", "true", "a b#c{}[]", "ümlaut ✓", "<&>"} {
		text, err := Config{StoreDir: "/x", UserPass: &UserPass{Ops: password, Data: "b", Device: "c"}}.Render()
		if err != nil {
			t.Fatalf("%q: %v", password, err)
		}
		opts := &server.Options{}
		if err := opts.ProcessConfigString(text); err != nil {
			t.Fatalf("%q: %v", password, err)
		}
		i := slices.IndexFunc(opts.Users, func(u *server.User) bool { return u.Username == UserOps })
		if opts.Users[i].Password != password {
			t.Errorf("%q became %q", password, opts.Users[i].Password)
		}
	}
}

func TestBadConfigurationIsRefusedByName(t *testing.T) {
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	good := func() Config {
		return Config{StoreDir: "/x", UserPass: &UserPass{Ops: "one-secret", Data: "two-secret", Device: "three-secret"}}
	}
	callout := func(c Callout) func(*Config) {
		return func(cfg *Config) { cfg.UserPass, cfg.Callout = nil, &c }
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no store", func(c *Config) { c.StoreDir = "" }, "store directory"},
		{"no authentication", func(c *Config) { c.UserPass = nil }, "set UserPass or Callout"},
		{"both", func(c *Config) { c.Callout = &Callout{} }, "choose one"},
		{"no device password", func(c *Config) { c.UserPass.Device = "" }, "password for each"},
		{"control character in a password", func(c *Config) { c.UserPass.Ops = "one-secret\x01" }, "password of ops"},
		{"password that is a broken hash", func(c *Config) { c.UserPass.Ops = "\u2028one-secret" }, "password of ops"},
		{"no issuer", callout(Callout{Password: "p"}), "callout issuer"},
		{"issuer of another kind", callout(Callout{Issuer: "U" + testIssuer[1:], Password: "p"}), "callout issuer"},
		{"a seed for the issuer", callout(Callout{Issuer: string(seed), Password: "p"}), "callout issuer"},
		{"mistyped issuer", callout(Callout{Issuer: testIssuer[:20], Password: "p"}), "callout issuer"},
		{"wrong xkey", callout(Callout{Issuer: testIssuer, XKey: testIssuer, Password: "p"}), "callout xkey"},
		{"no callout password", callout(Callout{Issuer: testIssuer}), "user callout"},
		{"half of TLS", func(c *Config) { c.TLS = &TLS{CertFile: "x"} }, "certificate file and a key file"},
		{"clients verified by nothing", func(c *Config) { c.TLS = &TLS{CertFile: "x", KeyFile: "y", VerifyClients: true} }, "CA file"},
		{"one account name twice", func(c *Config) { c.Accounts.Ops = "DATA" }, `"DATA" is used twice`},
		{"an account named with a wildcard", func(c *Config) { c.Accounts.Fleet = "T1.*" }, `"T1.*"`},
		{"an account named with an empty token", func(c *Config) { c.Accounts.Fleet = "T1." }, `"T1."`},
		{"an account named as the server's own", func(c *Config) { c.Accounts.Ops = "$G" }, `"$G"`},
		{"open cluster", func(c *Config) { c.Host, c.Cluster = "0.0.0.0", &Cluster{Name: "c", Port: 1} }, "needs a password"},
		{"open cluster beside a closed server", func(c *Config) { c.Cluster = &Cluster{Name: "c", Port: 1, Host: "::"} }, "needs a password"},
		{"cluster with half of TLS", func(c *Config) { c.Cluster = &Cluster{Name: "c", Port: 1, TLS: &TLS{CertFile: "x", KeyFile: "y"}} }, "CA file"},
		{"password in a route", func(c *Config) {
			c.Cluster = &Cluster{Name: "c", Port: 1, Routes: []string{"nats-route://u:secret@h:1"}}
		}, "of the form"},
		{"cluster without a name", func(c *Config) { c.Cluster = &Cluster{Port: 1} }, "cluster"},
		{"port out of range", func(c *Config) { c.Port = 70000 }, "port 70000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good()
			tt.change(&cfg)
			_, err := cfg.Render()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), string(seed)) {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

func TestRenderLeavesTheCallersConfigAlone(t *testing.T) {
	cfg := configs()["userpass"]
	before := cfg
	if _, err := cfg.Render(); err != nil {
		t.Fatal(err)
	}
	if cfg != before {
		t.Errorf("%+v", cfg)
	}
}

package callout

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

const goodConfig = `
listen = "127.0.0.1:8080"
workers = 32
queue = 100
max_age = "1s"
max_session = "1h"
probe_interval = "5s"
[nats]
url = ["nats://127.0.0.1:4222", "tls://nats.example:4222"]
user = "callout"
password_file = "/run/password"
[signing]
issuer_seed_file = "/run/issuer.seed"
xkey_seed_file = "/run/xkey.seed"
[accounts]
ops = "O"
[[issuers]]
url = "https://zitadel.example"
audience = "277"
project_id = "277"
roles = ["fleet-admin", "device"]
devices = "vm-*"
device_id_prefix = ""
[[issuers]]
url = "https://kubernetes.default.svc"
audience = "fleet"
ca_file = "/ca"
token_file = "/token"
jwks_url = "https://10.0.0.1/openid/v1/jwks"
roles = ["fleet-controller"]
refresh = "10m"
leeway = "5s"
[[issuers.subjects]]
subject = "system:serviceaccount:fleet:operator"
roles = ["fleet-controller"]
`

func TestGoodConfiguration(t *testing.T) {
	cfg, err := Parse([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.NATS.URL) != 2 || cfg.Accounts.Ops != "O" || cfg.Accounts.Data != "DATA" || time.Duration(cfg.MaxAge) != time.Second ||
		*cfg.Issuers[0].DeviceIDPrefix != "" || *cfg.Issuers[1].DeviceIDPrefix != "device-" || cfg.Issuers[1].Subjects[0].Subject == "" {
		t.Errorf("%+v", cfg)
	}
	cfg, err = Parse([]byte("[nats]\nurl = \"nats://[::1]:4222\"\n[[issuers]]\nurl=\"https://x\"\naudience=\"a\"\nroles=[\"fleet-viewer\"]\n"))
	if err != nil || cfg.Workers != 64 || cfg.Queue != 4096 || time.Duration(cfg.MaxAge) != 1500*time.Millisecond || cfg.Listen != ":8080" || cfg.NATS.URL[0] != "nats://[::1]:4222" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestWrongConfigurationNamesEachKey(t *testing.T) {
	const minimal = "[[issuers]]\nurl=\"https://x\"\naudience=\"a\"\nroles=[\"fleet-viewer\"]\n"
	for _, tt := range []struct {
		text string
		want []string
	}{
		{"", []string{"issuers: none"}},
		{"wrokers = 1\n" + minimal, []string{`line 1: unknown key "wrokers"`}},
		{minimal + "rolez = []\n", []string{`line 5: unknown key "issuers.rolez"`}},
		{minimal + "\n[nats]\npasswd = \"hunter2\"\n", []string{`unknown key "nats.passwd"`}},
		{"workers = \"many\"\n" + minimal, []string{"line 1", "workers"}},
		{"max_age = \"soon\"\n" + minimal, []string{"line 1"}},
		{"nonsense\n" + minimal, []string{"line 1"}},
		{"workers = -1\nqueue = -1\nmax_age = \"3s\"\nmax_session = \"1s\"\nlisten = \"8080\"\nprobe_interval = \"1ms\"\n" + minimal + "\n[log]\nlevel = \"loud\"\nformat = \"xml\"\n",
			[]string{"workers:", "queue:", "max_age:", "max_session:", "listen:", "log.level:", "log.format:", "probe_interval:"}},
		{"[nats]\nurl = \"nats://nats.example:4222\"\n" + minimal, []string{"nats.url", "plaintext"}},
		{"[nats]\nurl = \"nats://u:hunter2@127.0.0.1:4222\"\n" + minimal, []string{"nats.url"}},
		{"[nats]\nurl = 7\n" + minimal, []string{"nats.url", "list of strings"}},
		{"[nats]\nurl = \"http://x\"\n" + minimal, []string{"nats.url"}},
		{"[nats]\npassword = \"hunter2\"\npassword_file = \"x\"\n" + minimal, []string{"nats.password_file"}},
		{"[nats.tls]\ncert = \"x\"\n" + minimal, []string{"nats.tls"}},
		{minimal + minimal, []string{"issuers[1].url", "twice"}},
		{"[[issuers]]\n", []string{"issuers[0].url", "issuers[0].audience", "issuers[0].roles"}},
		{"[[issuers]]\nurl=\"https://x\"\naudience=\"a\"\nroles=[\"device\",\"fleet-root\"]\n", []string{"issuers[0].devices", `"fleet-root" is not a role`}},
		{minimal + "devices = \"[\"\n", []string{"issuers[0].devices"}},
		{minimal + "plain_roles = true\n", []string{"issuers[0].plain_roles"}},
		{minimal + "[[issuers.subjects]]\nsubject=\"\"\n", []string{"subjects[0].subject", "subjects[0].roles"}},
		{minimal + "[[issuers.subjects]]\nsubject=\"s\"\nroles=[\"fleet-admin\"]\n", []string{"subjects[0].roles", "may grant"}},
		{minimal + "[[issuers.subjects]]\nsubject=\"s\"\nroles=[\"fleet-viewer\"]\ndevice_id=\"A.b\"\n", []string{"subjects[0].device_id"}},
		{"[[issuers]]\nurl=\"https://x\"\naudience=\"a\"\nroles=[\"device\"]\ndevices=\"vm-*\"\n[[issuers.subjects]]\nsubject=\"s\"\nroles=[\"device\"]\ndevice_id=\"db-1\"\n", []string{"outside devices"}},
	} {
		_, err := Parse([]byte(tt.text))
		if err == nil {
			t.Errorf("accepted:\n%s", tt.text)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s\nerror %q lacks %q", tt.text, err, want)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error holds the password: %v", err)
		}
	}
}

func TestSeedsAndFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := GenerateSeeds(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{IssuerSeedFile, XKeySeedFile} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	if _, err := GenerateSeeds(dir); err == nil {
		t.Error("overwrote the seeds")
	}
	os.Remove(filepath.Join(dir, IssuerSeedFile))
	if _, err := GenerateSeeds(dir); err == nil {
		t.Error("overwrote the xkey seed")
	}
	if _, err := os.Stat(filepath.Join(dir, IssuerSeedFile)); err == nil {
		t.Error("left half a pair")
	}

	dir = t.TempDir()
	pub, err := GenerateSeeds(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := func(issuer, xkey string) Config {
		return Config{Listen: "off", Signing: Signing{IssuerSeedFile: issuer, XKeySeedFile: xkey},
			Issuers: []Issuer{{URL: "https://x", Audience: "a", Roles: testIssuer(nil).Roles, Devices: "*"}}}
	}
	a, x := filepath.Join(dir, IssuerSeedFile), filepath.Join(dir, XKeySeedFile)
	svc, err := New(Options{Config: cfg(a, x)})
	if err != nil || svc.PublicKeys() != pub || pub.Issuer[0] != 'A' || pub.XKey[0] != 'X' {
		t.Fatalf("%+v, %v", svc, err)
	}
	empty := filepath.Join(dir, "empty")
	os.WriteFile(empty, nil, 0o600)
	for _, bad := range []Config{cfg("", x), cfg(x, a), cfg(a, a), cfg(a, empty), cfg(dir+"/none", x), cfg(a, dir+"/none")} {
		_, err := New(Options{Config: bad})
		seed, _ := os.ReadFile(a)
		if err == nil || strings.Contains(err.Error(), string(seed[:20])) {
			t.Errorf("%+v: err = %v", bad.Signing, err)
		}
	}
	for key, n := range map[string]NATS{
		"nats.password_file": {PasswordFile: dir + "/none"}, "nats.tls.ca": {TLS: TLS{CA: a}}, "nats.tls:": {TLS: TLS{Cert: a, Key: a}},
	} {
		bad := cfg(a, x)
		bad.NATS = n
		if _, err := New(Options{Config: bad}); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: err = %v", key, err)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", Config{NATS: NATS{Password: "hunter2"}}, NATS{Password: "hunter2"}, NATS{Password: "hunter2"}); strings.Contains(text, "hunter2") {
		t.Errorf("the password is printed: %s", text)
	}
	seeds, err := NewSeeds()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v", seeds, seeds, seeds); strings.Contains(text, string(seeds.Issuer)) || strings.Contains(text, "[") {
		t.Errorf("seeds are printed: %s", text)
	}
}

func TestWrongPasswordOfTheServiceIsLoggedAndTakenUpWhenCorrected(t *testing.T) {
	e := newEnv(t)
	file := filepath.Join(t.TempDir(), "password")
	os.WriteFile(file, []byte("wrong\n"), 0o600)
	c := e.start(t, func(cfg *Config) { cfg.NATS.Password, cfg.NATS.PasswordFile = "", file })
	testwait.For(t, 5*time.Second, "the failure in the log", func() bool { return e.logs.count("cannot connect to NATS") > 0 })
	os.WriteFile(file, []byte(calloutPassword+"\n"), 0o600)
	testwait.For(t, 10*time.Second, "ready", func() bool { return c.NotReady() == nil })
	if strings.Contains(e.logs.String(), calloutPassword) {
		t.Error("the log has the password")
	}
}

func TestXKeyFormatIsThatOfNkeys(t *testing.T) {
	seeds, err := NewSeeds()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := seeds.parse()
	if err != nil {
		t.Fatal(err)
	}
	peer, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	peerPub, err := peer.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time with the kept key
		sealed, err := ours.xkey.seal([]byte("to the server"), peerPub)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := peer.Open(sealed, ours.public.XKey); err != nil || string(text) != "to the server" {
			t.Errorf("%q, %v", text, err)
		}
		if sealed, err = peer.Seal([]byte("to the callout"), ours.public.XKey); err != nil {
			t.Fatal(err)
		}
		if text, err := ours.xkey.open(sealed, peerPub); err != nil || string(text) != "to the callout" {
			t.Errorf("%q, %v", text, err)
		}
		sealed[len(sealed)-1] ^= 1
		for _, bad := range [][]byte{sealed, sealed[:10], nil, []byte("eyJ")} {
			if _, err := ours.xkey.open(bad, peerPub); err == nil {
				t.Error("opened a changed message")
			}
		}
	}
	for _, bad := range []string{"", "X", ours.public.Issuer} {
		if _, err := ours.xkey.seal(nil, bad); err == nil {
			t.Errorf("sealed for %q", bad)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("[nats]\nurl = [1]\n[[issuers]]\n[issuers.subjects]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cfg, err := Parse(raw)
		if err == nil && len(cfg.Issuers) == 0 {
			t.Error("accepted without issuers")
		}
		_ = slog.AnyValue(err)
	})
}

package issuer

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestConfigIsStrict(t *testing.T) {
	for _, tc := range []struct {
		name, toml, says string // says empty: taken
	}{
		{"empty", "", ""},
		{"whole", `
listen = "127.0.0.1:8080"
issuer = "http://127.0.0.1:8080"
project_id = "7"
org_id = "8"
org_domain = "d"
token_lifetime = "1h"
key_grace = "30m"
algorithm = "RS256"
signing_key_file = "k"
keys_dir = "d"
[tls]
cert = "c"
key = "k"
[[users]]
name = "admin"
id = "1"
roles = ["fleet-admin"]
client_secret = "hidden"
`, ""},
		{"unknown key", "lisen = 'x'\n[tls]\nca = 'x'", "line 1: unknown key \"lisen\"\nline 3: unknown key \"tls.ca\""},
		{"unknown key of a user", "[[users]]\nname='x'\nrole='x'", `line 3: unknown key "users.role"`},
		{"not TOML", "client_secret = hidden", "line 1"},
		{"wrong type", "[[users]]\nname='x'\nclient_secret=12345678", "line 3"},
		{"duration", "token_lifetime = 'long'", "not a duration"},
		{"algorithm", "algorithm = 'none'", "ES256 or RS256"},
		{"user", "[[users]]\nname='a/b'", "user name"},
		{"two users", "[[users]]\nname='a'\n[[users]]\nname='a'", "there already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := LoadConfig(writeTemp(t, "c.toml", []byte(tc.toml)))
			if tc.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				if tc.name == "whole" && (len(c.Users) != 1 || time.Duration(c.TokenLifetime) != time.Hour || c.TLS.Key != "k") {
					t.Errorf("config %+v", c)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "c.toml") {
				t.Errorf("says %v, want %q", err, tc.says)
			}
			if err != nil && (strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "12345678")) {
				t.Errorf("quotes a secret: %v", err)
			}
		})
	}
	if _, err := LoadConfig(t.TempDir() + "/missing"); err == nil {
		t.Error("missing file")
	}
	if _, err := LoadConfig(writeTemp(t, "big", bytes.Repeat([]byte("#"), maxConfig+1))); err == nil {
		t.Error("file too large")
	}
}

// runConfig runs c until the returned function is called, which gives the error.
func runConfig(t *testing.T, c Config, rotate chan os.Signal) (*syncbuf.Buffer, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var out syncbuf.Buffer
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { err = Run(ctx, c, slog.New(slog.NewTextHandler(&out, nil)), rotate) })
	stop := func() error { cancel(); wg.Wait(); return err }
	t.Cleanup(func() { stop() })
	testwait.For(t, 10*time.Second, "issuer ready", func() bool { return strings.Contains(out.String(), "issuer ready") })
	return &out, stop
}

func TestRunWritesKeyFilesAndKeepsThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	c, err := parseConfig([]byte("keys_dir = '" + dir + "'\nsigning_key_file = '" + t.TempDir() + "/s.pem'\n" +
		"[[users]]\nname = 'device-a'\nroles = ['device']\n[[users]]\nname = 'admin'\nclient_secret = 'hidden-secret'\n"))
	if err != nil {
		t.Fatal(err)
	}
	rotate := make(chan os.Signal, 1)
	out, stop := runConfig(t, c, rotate)
	first, err := os.ReadFile(dir + "/device-a.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"device-a.json", "admin.json"} {
		if info, err := os.Stat(filepath.Join(dir, f)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	rotate <- syscall.SIGHUP
	testwait.For(t, 10*time.Second, "rotation", func() bool { return strings.Contains(out.String(), "signing key rotated") })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if log := out.String(); !strings.Contains(log, "not for production") || strings.Contains(log, "hidden-secret") || strings.Contains(log, "PRIVATE") {
		t.Errorf("log %s", log)
	}
	_, stop = runConfig(t, c, nil)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(dir + "/device-a.json"); !bytes.Equal(first, again) {
		t.Error("another key after a restart")
	}

	for name, content := range map[string]string{"empty": "", "garbage": "garbage", "large": strings.Repeat("x", maxBody+1)} {
		if err := os.WriteFile(dir+"/device-a.json", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Run(t.Context(), c, slog.New(slog.DiscardHandler), nil); err == nil {
			t.Errorf("%s key file: started", name)
		}
	}
	c.KeysDir = writeTemp(t, "file", nil) + "/x"
	if err := Run(t.Context(), c, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), "keys_dir") {
		t.Errorf("directory that cannot be made: %v", err)
	}
}

// FuzzAssertionIsRefused throws bytes at the JWT profile grant: nothing that
// is not signed with a user's key gets a token, and nothing panics.
func FuzzAssertionIsRefused(f *testing.F) {
	s, err := Start(f.Context(), Options{Users: []User{device}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	tok, err := s.Mint(device.Name, MintOptions{})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "a.b.c", "..", tok, "eyJhbGciOiJub25lIn0.e30.", `{"payload":"e30","signatures":[]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, assertion string) {
		r := httptest.NewRequest(http.MethodPost, tokenPath, strings.NewReader(jwtBearer(assertion).Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
	})
}

func FuzzParseSigningKeys(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nRetired: 2026-01-01T00:00:00Z\n\nAAAA\n-----END PRIVATE KEY-----\n"))
	key, err := newKey(ES256)
	if err != nil {
		f.Fatal(err)
	}
	k, err := newSigningKey(key, "")
	if err != nil {
		f.Fatal(err)
	}
	path := f.TempDir() + "/k"
	if err := writeKeys(path, []*signingKey{k}); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseKeys(data)
		for _, k := range keys {
			if err == nil && (k.signer == nil || k.id == "") {
				t.Error("a key that cannot sign")
			}
		}
	})
}

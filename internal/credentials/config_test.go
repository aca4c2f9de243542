package credentials_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/credentials"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the fixture's library writes there
	goleak.VerifyTestMain(m)
}

type config = credentials.Config

func zitadelConfig() config {
	return config{Type: "zitadel-key", Issuer: "https://id.example.com", KeyFile: "/k.json", ProjectID: "1"}
}

func TestValidateNamesTheKey(t *testing.T) {
	with := func(change func(*config)) config {
		c := zitadelConfig()
		change(&c)
		return c
	}
	for _, tc := range []struct {
		name string
		c    config
		keys []string // that the error names; none: valid
	}{
		{"empty", config{}, []string{"type"}},
		{"unknown type", config{Type: "magic"}, []string{"type"}},
		{"shared", config{Type: "shared", User: "device", Password: "hidden"}, nil},
		{"shared, file", config{Type: "shared", User: "device", PasswordFile: "/x"}, nil},
		{"shared, nothing", config{Type: "shared"}, []string{"user", "password_file"}},
		{"shared, both passwords", config{Type: "shared", User: "u", Password: "hidden", PasswordFile: "/x"}, []string{"password_file"}},
		{"shared with a key", config{Type: "shared", User: "u", Password: "hidden", KeyFile: "/x", Account: "ops"}, []string{"key_file", "account"}},
		{"token-file", config{Type: "token-file", TokenFile: "/x", Account: "ops"}, nil},
		{"token-file, nothing", config{Type: "token-file"}, []string{"token_file"}},
		{"token-file with a password", config{Type: "token-file", TokenFile: "/x", Password: "hidden"}, []string{"password"}},
		{"kubernetes", config{Type: "kubernetes"}, nil},
		{"kubernetes with issuer", config{Type: "kubernetes", Issuer: "https://x"}, []string{"issuer"}},
		{"zitadel-key", zitadelConfig(), nil},
		{"zitadel-key, nothing", config{Type: "zitadel-key"}, []string{"issuer", "key_file", "project_id"}},
		{"zitadel-key with a token file", with(func(c *config) { c.TokenFile = "/x" }), []string{"token_file"}},
		{"plain http", with(func(c *config) { c.Issuer = "http://id.example.com" }), []string{"issuer"}},
		{"plain http to a private address", with(func(c *config) { c.Issuer = "http://10.0.0.1:8080" }), []string{"issuer"}},
		{"plain http, a name that looks like loopback", with(func(c *config) { c.Issuer = "http://127.0.0.1.example.com" }), []string{"issuer"}},
		{"plain http, insecure", with(func(c *config) { c.Issuer, c.Insecure = "http://id.example.com", true }), nil},
		{"plain http, loopback", with(func(c *config) { c.Issuer = "http://127.0.0.1:8080" }), nil},
		{"plain http, loopback v6", with(func(c *config) { c.Issuer = "http://[::1]:8080" }), nil},
		{"plain http, localhost", with(func(c *config) { c.Issuer = "http://localhost:8080" }), nil},
		{"issuer without scheme", with(func(c *config) { c.Issuer = "id.example.com" }), []string{"issuer"}},
		{"issuer of another scheme", with(func(c *config) { c.Issuer = "ftp://id.example.com" }), []string{"issuer"}},
		{"issuer with password", with(func(c *config) { c.Issuer = "https://a:hidden@id.example.com" }), []string{"issuer"}},
		{"issuer with query", with(func(c *config) { c.Issuer = "https://id.example.com?x=hidden" }), []string{"issuer"}},
		{"project with a scope in it", with(func(c *config) { c.ProjectID = "1:aud openid" }), []string{"project_id"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.c.Validate()
			if (err == nil) != (len(tc.keys) == 0) {
				t.Fatalf("%v, want %v", err, tc.keys)
			}
			if _, newErr := credentials.New(tc.c); (newErr == nil) != (err == nil) {
				t.Errorf("New says %v", newErr)
			}
			if err == nil {
				return
			}
			for _, k := range tc.keys {
				if !strings.Contains(err.Error(), "[credentials] "+k+": ") {
					t.Errorf("%v does not name %s", err, k)
				}
			}
			if n := strings.Count(err.Error(), "[credentials]"); n != len(tc.keys) {
				t.Errorf("%d faults, want %d: %v", n, len(tc.keys), err)
			}
			if strings.Contains(err.Error(), "hidden") {
				t.Errorf("quotes a secret: %v", err)
			}
		})
	}
}

func TestConfigIsReadFromTOML(t *testing.T) {
	var doc struct {
		Credentials config `toml:"credentials"`
	}
	err := toml.NewDecoder(strings.NewReader(`[credentials]
type = "zitadel-key"
user = "a"
password = "b"
password_file = "c"
token_file = "d"
issuer = "e"
key_file = "f"
project_id = "g"
ca_file = "h"
insecure = true
account = "i"
`)).DisallowUnknownFields().Decode(&doc)
	want := config{Type: "zitadel-key", User: "a", Password: "b", PasswordFile: "c", TokenFile: "d", Issuer: "e", KeyFile: "f", ProjectID: "g", CAFile: "h", Insecure: true, Account: "i"}
	if err != nil || doc.Credentials != want {
		t.Errorf("%#v, %v", doc.Credentials, err)
	}
}

func TestNothingShowsASecret(t *testing.T) {
	const secret = "hidden-secret"
	cred := credentials.Credential{User: "u", Password: secret, Token: secret, Expiry: time.Unix(1e9, 0)}
	cfg := config{Type: "shared", User: "u", Password: secret}
	src, err := credentials.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]any{
		"credential": cred, "pointer": &cred, "in a struct": struct{ C credentials.Credential }{cred}, "config": cfg,
		"config in a struct": struct{ C config }{cfg},
		"static":             credentials.Static(cred), "shared": src, "key file": credentials.KeyFile{Key: secret},
	} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		text := fmt.Sprintf("%v %+v %#v %s", v, v, v, v)
		if name != "key file" { // which is made to be written to a file
			data, err := json.Marshal(v)
			if err != nil {
				t.Error(err)
			}
			text += string(data)
		}
		if strings.Contains(text+log.String(), secret) {
			t.Errorf("%s shows its secret: %s %s", name, text, log.String())
		}
	}
	if s := cred.String(); !strings.Contains(s, `"u"`) || !strings.Contains(s, "2001-09-09T01:46:40Z") {
		t.Errorf("shows too little: %s", s)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	return path
}

func source(t *testing.T, c config) credentials.Source {
	t.Helper()
	src, err := credentials.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func get(t *testing.T, src credentials.Source) credentials.Credential {
	t.Helper()
	c, err := src.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFilesAreReadAnewEachTime(t *testing.T) {
	path := t.TempDir() + "/secret"
	const jwt = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln" // exp 2100-01-01
	for _, tc := range []struct {
		c       config
		content string
		want    credentials.Credential
	}{
		{config{Type: "shared", User: "device", PasswordFile: path}, "one\n", credentials.Credential{User: "device", Password: "one"}},
		{config{Type: "shared", User: "device", PasswordFile: path}, "pass word", credentials.Credential{User: "device", Password: "pass word"}},
		{config{Type: "token-file", TokenFile: path, Account: "ops"}, " opaque\r\n", credentials.Credential{User: "ops", Token: "opaque"}},
		{config{Type: "kubernetes", TokenFile: path}, jwt + "\n", credentials.Credential{Token: jwt, Expiry: time.Unix(4102444800, 0)}},
	} {
		src := source(t, tc.c)
		if _, err := src.Credential(t.Context()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("no file: %v", err)
		}
		write(t, path, "first", 0o600)
		get(t, src)
		write(t, path, tc.content, 0o600)
		if got := get(t, src); got != tc.want || got.Token != tc.want.Token || got.Password != tc.want.Password {
			t.Errorf("got %v, want %v", got, tc.want)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadSecretFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := dir + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, path, says string }{
		{"missing", dir + "/missing", "does not exist"},
		{"directory", dir, "not a regular file"},
		{"pipe without a writer", fifo, "not a regular file"},
		{"empty", write(t, dir+"/empty", " \n", 0o600), "empty"},
		{"larger than 64 KiB", write(t, dir+"/large", strings.Repeat("x", 64<<10+1), 0o600), "larger than 64 KiB"},
		{"two lines", write(t, dir+"/lines", "hidden\nhidden", 0o600), "more than one line"},
		{"binary", write(t, dir+"/binary", "hidden\x00", 0o600), "control characters"},
	} {
		for _, c := range []config{
			{Type: "token-file", TokenFile: tc.path}, {Type: "kubernetes", TokenFile: tc.path}, {Type: "shared", User: "u", PasswordFile: tc.path},
		} {
			cred, err := source(t, c).Credential(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), tc.path) || !strings.Contains(err.Error(), "[credentials]") || cred != (credentials.Credential{}) {
				t.Errorf("%s, %s: says %v, want %q", c.Type, tc.name, err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "hidden") {
				t.Errorf("%s quotes the file: %v", tc.name, err)
			}
		}
	}
	two := write(t, dir+"/two", "a b", 0o600)
	if _, err := source(t, config{Type: "token-file", TokenFile: two}).Credential(t.Context()); err == nil {
		t.Error("two words taken for a token")
	}
}

func TestSecretFileOpenToOthersIsWarnedOfOnce(t *testing.T) {
	for _, tc := range []struct {
		typ  string
		mode os.FileMode
		want int
	}{
		{"token-file", 0o600, 0}, {"token-file", 0o400, 0}, {"token-file", 0o640, 1}, {"token-file", 0o604, 1}, {"kubernetes", 0o644, 0},
	} {
		var log bytes.Buffer
		path := write(t, t.TempDir()+"/token", "token", tc.mode)
		src := source(t, config{Type: tc.typ, TokenFile: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		get(t, src)
		get(t, src)
		if n := strings.Count(log.String(), "can be read by other users"); n != tc.want {
			t.Errorf("%s %o: %d warnings, want %d: %s", tc.typ, tc.mode, n, tc.want, log.String())
		}
	}
}

func TestExpiredTokenInAFileIsPassedOnWithAWarning(t *testing.T) {
	var log bytes.Buffer
	path := write(t, t.TempDir()+"/token", "e30.eyJleHAiOjF9.c2ln", 0o600)
	cred := get(t, source(t, config{Type: "token-file", TokenFile: path, Logger: slog.New(slog.NewTextHandler(&log, nil))}))
	if !cred.Expiry.Equal(time.Unix(1, 0)) || !strings.Contains(log.String(), "has expired") || strings.Contains(log.String(), "eyJ") {
		t.Errorf("%v: %s", cred, log.String())
	}
}

// The agent is small because this package is: what it imports is part of its contract.
func TestImportsStaySmall(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, banned := range []string{
		"github.com/prometheus/", "k8s.io/", "github.com/zitadel/oidc/v3/pkg/op", "github.com/go-chi/", "github.com/nats-io/",
		"github.com/harmony-fleet/fleet/internal/issuer",
	} {
		if strings.Contains("\n"+string(out), "\n"+banned) {
			t.Errorf("imports %s", banned)
		}
	}
}

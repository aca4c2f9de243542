package cli

import (
	"encoding/base64"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

func testApp(t *testing.T, env map[string]string) *app {
	t.Helper()
	dir := t.TempDir()
	return &app{
		stdout: io.Discard, stderr: io.Discard, log: slog.New(slog.DiscardHandler),
		getenv: func(name string) string {
			if name == "XDG_CONFIG_HOME" || name == "XDG_STATE_HOME" {
				return dir
			}
			return env[name]
		},
	}
}

func fakeToken(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func TestConnectionSettingsComeInOrder(t *testing.T) {
	const local = "nats://127.0.0.1:4222"
	context := &contextFile{Server: local, Token: "from-context", CA: "/ca.pem"}
	static := &contextFile{Server: local, User: "ops", Password: "o", DataUser: "data", DataPassword: "d"}
	for name, c := range map[string]struct {
		flags   connFlags
		env     map[string]string
		context *contextFile
		server  string
		login   login
		fault   string
	}{
		"flags win": {
			flags:   connFlags{server: "tls://a", token: "flag"},
			env:     map[string]string{"FLEET_SERVER": "tls://b", "FLEET_TOKEN": "env"},
			context: context, server: "tls://a", login: login{token: "flag"},
		},
		"environment before context": {
			env:     map[string]string{"FLEET_SERVER": "tls://b", "FLEET_TOKEN": "env"},
			context: context, server: "tls://b", login: login{token: "env"},
		},
		"context": {context: context, server: local, login: login{token: "from-context"}},
		"context with static users": {
			context: static, server: local, login: login{user: "ops", password: "o"},
		},
		"token for the context's server": {
			flags: connFlags{tokenFile: "/t"}, context: context, server: local, login: login{tokenFile: "/t"},
		},
		"user flag with password of the environment": {
			flags: connFlags{server: "tls://a", user: "u"}, env: map[string]string{"FLEET_PASSWORD": "p"},
			server: "tls://a", login: login{user: "u", password: "p"},
		},
		"same server named": {
			flags: connFlags{server: local}, context: context, server: local, login: login{token: "from-context"},
		},
		"context's token stays with its server": {
			flags: connFlags{server: "tls://elsewhere"}, context: context, fault: "not sent elsewhere",
		},
		"nothing":              {fault: "run fleet up"},
		"server alone":         {flags: connFlags{server: "tls://a"}, fault: "no credentials for tls://a"},
		"two ways":             {flags: connFlags{server: "tls://a", token: "t", user: "u", password: "p"}, fault: "choose one"},
		"user alone":           {flags: connFlags{server: "tls://a", user: "u"}, fault: "FLEET_PASSWORD"},
		"password alone":       {flags: connFlags{server: "tls://a", password: "p"}, fault: "without a user"},
		"context without user": {context: &contextFile{Server: local}, fault: "no token and no user"},
	} {
		t.Run(name, func(t *testing.T) {
			a := testApp(t, c.env)
			a.flags = c.flags
			if c.context != nil {
				path, _ := a.contextPath()
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := c.context.write(path); err != nil {
					t.Fatal(err)
				}
			}
			s, err := a.settings()
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) || exitCode(err) != 2 {
					t.Fatalf("got %v (exit %d), want %q", err, exitCode(err), c.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s.login.from = ""
			if s.server != c.server || s.login != c.login {
				t.Errorf("got %s %+v, want %s %+v", s.server, s.login, c.server, c.login)
			}
		})
	}
}

func TestInboxPrefixFollowsTheIdentity(t *testing.T) {
	token := fakeToken(`{"iss":"https://id","sub":"42"}`)
	for name, c := range map[string]struct {
		s       settings
		account access.Account
		user    string
		want    string
	}{
		"token":       {settings{login: login{token: token + "\n"}}, access.Data, "data", "https://id#42"},
		"static ops":  {settings{login: login{user: "ops", password: "o"}, data: login{user: "data", password: "d"}}, access.Ops, "ops", "ops"},
		"static data": {settings{login: login{user: "ops", password: "o"}, data: login{user: "data", password: "d"}}, access.Data, "data", "data"},
	} {
		t.Run(name, func(t *testing.T) {
			src, inbox, err := c.s.source(t.Context(), c.account)
			if err != nil {
				t.Fatal(err)
			}
			if want := command.InboxPrefix(command.UID(c.want)); inbox != want {
				t.Errorf("inbox %s, want %s", inbox, want)
			}
			cred, err := src.Credential(t.Context())
			if err != nil || cred.User != c.user || strings.TrimSpace(cred.Token) != cred.Token {
				t.Errorf("credential %v, %v", cred, err)
			}
		})
	}
	for _, bad := range []string{"x", "a.b.c", fakeToken(`{"iss":"i"}`), fakeToken(`[]`), strings.Repeat("a", 20000)} {
		_, _, err := settings{login: login{token: bad, from: "the flags"}}.source(t.Context(), access.Ops)
		if err == nil || exitCode(err) != 2 || (len(bad) > 3 && strings.Contains(err.Error(), bad)) {
			t.Errorf("token of %d bytes: %v", len(bad), err)
		}
	}
	missing := settings{login: login{tokenFile: filepath.Join(t.TempDir(), "none"), from: "the flags"}}
	if _, _, err := missing.source(t.Context(), access.Ops); err == nil || exitCode(err) != 2 {
		t.Errorf("missing token file: %v", err)
	}
}

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/stack"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestFollowEndsWithItsToken holds what becomes of `audit -f` once the broker no
// longer takes its token: the file is read again, and where that brings none that
// is taken, the command ends as denied. A callout that is away ends nothing.
func TestFollowEndsWithItsToken(t *testing.T) {
	s, err := stack.Start(t.Context(), stack.Options{Devices: 1, Port: stack.AnyPort})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := binary(); err != nil { // not on the tokens' clock
		t.Fatal(err)
	}
	ping := func() {
		if _, err := s.Client().Ping(t.Context(), "vm-device-00"); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(p *process, n int) {
		testwait.For(t, patience, "audit records", func() bool { return strings.Count(p.stdout.String(), `"verb":"ping"`) >= n })
	}
	ends := func(t *testing.T, p *process, secret string) {
		t.Helper()
		select {
		case <-p.ended:
		case <-time.After(patience):
			t.Fatalf("it goes on; stderr: %s", &p.stderr)
		}
		last := p.stdout.String()[strings.LastIndex(strings.TrimSpace(p.stdout.String()), "\n")+1:]
		if code := p.cmd.ProcessState.ExitCode(); code != 5 || !strings.Contains(p.stderr.String(), "denied") || !strings.HasPrefix(last, `{"outcome":"denied"`) {
			t.Errorf("exit code %d, stderr: %s, last line %s", code, &p.stderr, last)
		}
		if strings.Contains(p.stderr.String(), secret) {
			t.Errorf("it shows the token: %s", &p.stderr)
		}
	}
	follow := func(t *testing.T, flag, value string) *process {
		t.Helper()
		p := newHome(t).start("audit", "-f", "-v", "-o", "json", "--server", s.NATSURL(), flag, value)
		ping()
		shows(p, 1)
		return p
	}

	t.Run("expired", func(t *testing.T) {
		id, err := s.NewIdentity(4*time.Second, access.RoleAuditor)
		if err != nil {
			t.Fatal(err)
		}
		ends(t, follow(t, "--token", id.Token), id.Token)
	})
	t.Run("renewed in its file, then refused", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		write := func(token string) {
			if err := os.WriteFile(file+".new", []byte(token), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}
		mint := func(o issuer.MintOptions) string {
			token, err := s.Issuer().Mint("somebody", o)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		if err := s.Issuer().AddUser(issuer.User{Name: "somebody", Roles: []string{string(access.RoleAuditor)}}); err != nil {
			t.Fatal(err)
		}
		write(mint(issuer.MintOptions{Lifetime: 4 * time.Second}))
		p := follow(t, "--token-file", file)
		write(mint(issuer.MintOptions{}))
		again := func(n int) {
			testwait.For(t, patience, "a reconnect", func() bool {
				return strings.Count(p.stderr.String(), "connected to the broker again") == n
			})
		}
		again(1)
		ping()
		shows(p, 2)

		restart := func() {
			s.StopBroker()
			if err := s.StartBroker(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.StopCallout(); err != nil {
			t.Fatal(err)
		}
		restart()
		testwait.For(t, patience, "three sign-ins that nobody answered", func() bool {
			return strings.Count(p.stderr.String(), "may not have answered in time") >= 3
		})
		if err := s.StartCallout(t.Context()); err != nil {
			t.Fatal(err)
		}
		again(2)
		testwait.For(t, patience, "the fleet's own connections", func() bool {
			_, err := s.Client().Ping(t.Context(), "vm-device-00")
			return err == nil
		})
		shows(p, 3)

		forged := mint(issuer.MintOptions{OtherKey: true})
		write(forged)
		restart()
		ends(t, p, forged)
	})
}

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestUpPrintsHowToConnectAndPings(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h := newHome(t)
		o := h.fleet("up", "--port", "0", "--auth", auth, "--devices", "2", "--exit-after-ping", "--runtime", "off")
		signIn := `\[fleet\] admin token: eyJ[-\w.]+\n`
		if auth == "userpass" {
			signIn = `\[fleet\] user: ops\n\[fleet\] password: [A-Z2-7]{26}\n`
		}
		want := regexp.MustCompile(`^\[fleet\] NATS: nats://127\.0\.0\.1:\d+\n` + signIn +
			`\[fleet\] inbox prefix: _INBOX\.[a-z2-7]{26}            \(for other NATS clients\)\n` +
			`\[fleet\] devices: vm-device-00, vm-device-01\n` +
			`(vm-device-0[01]  ok  [\d.]+(µs|ms)  agent \S+, up \d+s, runtime disabled\n){2}$`)
		if o.code != 0 || !want.MatchString(o.stdout) || o.stderr != "" {
			t.Errorf("%s", o)
		}
		if left := h.leftovers(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestUpPrintsJSON(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		o := newHome(t).fleet("up", "--port", "0", "--auth", auth, "--devices", "1", "--exit-after-ping", "--runtime", "off", "-o", "json")
		want := `{"nats":"nats://127.0.0.1:N","admin_token":"S","inbox_prefix":"S","devices":["vm-device-00"]}` + "\n"
		if auth == "userpass" {
			want = `{"nats":"nats://127.0.0.1:N","user":"ops","password":"S","inbox_prefix":"S","devices":["vm-device-00"]}` + "\n"
		}
		want += goldenPing
		if got := normal(o.stdout); o.code != 0 || got != want {
			t.Errorf("%s\ngot  %s\nwant %s", o, got, want)
		}
	})
}

func TestCtrlCEndsUpAndLeavesNothing(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h := newHome(t)
		p := h.up("--auth", auth)
		info, err := os.Stat(h.contextFile())
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("context file: %v, %v", info, err)
		}
		code, took := p.interrupt()
		if code != 0 || took > 2*time.Second || p.stderr.String() != "" {
			t.Errorf("exit code %d after %v, stderr: %s", code, took, &p.stderr)
		}
		if left := h.leftovers(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		o := h.fleet("ping", "vm-device-00")
		if o.code != 2 || !strings.Contains(o.stderr, "run fleet up in another terminal") {
			t.Errorf("afterwards: %s", o)
		}
	})
}

func TestCtrlCDuringTheStartLeavesNothing(t *testing.T) {
	h := newHome(t)
	p := h.start("up", "--port", "0", "--devices", "500", "--runtime", "off")
	testwait.For(t, patience, "a temporary directory", func() bool {
		entries, _ := os.ReadDir(h.temp)
		return len(entries) > 0
	})
	if code, took := p.interrupt(); code != 0 || took > 2*time.Second {
		t.Errorf("exit code %d after %v, stderr: %s", code, took, &p.stderr)
	}
	if left := h.leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDataDirectoryIsKept(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h := newHome(t)
		dir := filepath.Join(t.TempDir(), "data")
		p := h.up("--auth", auth, "--data-dir", dir)
		inbox := p.line("inbox prefix")
		if o := h.fleet("label", "vm-device-01", "site=lab"); o.code != 0 {
			t.Fatalf("label: %s", o)
		}
		// One fleet at a time.
		o := newHome(t).fleet("up", "--port", "0", "--data-dir", dir, "--exit-after-ping")
		if o.code != 1 || !strings.Contains(o.stderr, "in use by another fleet") {
			t.Errorf("a second fleet on the directory: %s", o)
		}
		if code, _ := p.interrupt(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		p = h.up("--auth", auth, "--data-dir", dir)
		if again := p.line("inbox prefix"); again != inbox {
			t.Errorf("the inbox prefix was %s and is %s", inbox, again)
		}
		if o := h.fleet("ping", "-l", "site=lab", "-o", "json"); o.code != 0 || !strings.Contains(o.stdout, "vm-device-01") || strings.Contains(o.stdout, "vm-device-00") {
			t.Errorf("ping by a label of the last run: %s", o)
		}
		if code, _ := p.interrupt(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if left := h.leftovers(); len(left) > 0 {
			t.Errorf("left beside the data directory: %v", left)
		}
	})
}

func TestKilledUpIsNoticed(t *testing.T) {
	h := newHome(t)
	p := h.up("--auth", "userpass", "--devices", "1")
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	o := h.fleet("ping", "vm-device-00", "-o", "json")
	if o.code != 1 || !strings.Contains(o.stderr, "no longer runs") || strings.Count(o.stderr, "\n") != 1 {
		t.Errorf("ping of a fleet that was killed: %s", o)
	}
	var line result
	if err := json.Unmarshal([]byte(o.stdout), &line); err != nil || line.DeviceID != "vm-device-00" || line.Outcome != "failed" {
		t.Errorf("on stdout: %q", o.stdout)
	}
	// The next one takes over, and sweeps what the killed one left.
	p = h.up("--auth", "userpass", "--devices", "1")
	if o := h.fleet("ping", "vm-device-00"); o.code != 0 {
		t.Errorf("after a new start: %s", o)
	}
	p.interrupt()
}

func TestContextFileFollowsTheToken(t *testing.T) {
	h := newHome(t)
	p := h.up("--devices", "1", "--token-lifetime", "5s")
	first, err := readContext(h.contextFile())
	if err != nil || first == nil || first.Token != p.line("admin token") {
		t.Fatalf("context file: %v, %v", first, err)
	}
	testwait.For(t, patience, "a new token in the context file", func() bool {
		c, err := readContext(h.contextFile())
		return err == nil && c != nil && c.Token != first.Token
	})
	if o := h.fleet("ping", "vm-device-00"); o.code != 0 {
		t.Errorf("with the new token: %s", o)
	}
}

// flagsOf is what a fleet says its commands need, with the secret filled in.
func (p *process) flagsOf(secret string) []string {
	p.t.Helper()
	_, flags, ok := strings.Cut(p.stdout.String(), "In another terminal: fleet ping ")
	if !ok {
		p.t.Fatalf("no hint in %s", &p.stdout)
	}
	flags = strings.NewReplacer("TOKEN", secret, "PASSWORD", secret).Replace(flags)
	return append([]string{"ping"}, strings.Fields(flags)...)
}

func TestSecondUpLeavesTheContextFileOfTheFirst(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h := newHome(t)
		one := h.up("--auth", auth, "--devices", "1")
		before, err := os.ReadFile(h.contextFile())
		if err != nil {
			t.Fatal(err)
		}
		two := h.up("--auth", auth, "--devices", "2")
		testwait.For(t, patience, "a word on stderr", func() bool { return strings.Contains(two.stderr.String(), "\n") })
		if want := one.line("NATS"); !strings.Contains(two.stderr.String(), want) || !strings.Contains(two.stderr.String(), "is kept") || strings.Count(two.stderr.String(), "\n") != 1 {
			t.Errorf("the second does not say that %s has the context: %s", want, &two.stderr)
		}
		if o := h.fleet("ping", "vm-device-01"); o.code != 3 {
			t.Errorf("the context is not that of the first: %s", o)
		}
		label := "admin token"
		if auth == "userpass" {
			label = "password"
		}
		args := two.flagsOf(two.line(label))
		if o := h.fleet(append(args, "vm-device-01")...); o.code != 0 {
			t.Errorf("%v: %s", args, o)
		}
		if code, _ := two.interrupt(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if after, err := os.ReadFile(h.contextFile()); err != nil || string(after) != string(before) {
			t.Errorf("the end of the second touched the context of the first: %v", err)
		}
		one.interrupt()
		if left := h.leftovers(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestUpRunsWithoutAContextFile(t *testing.T) {
	for name, spoil := range map[string]func(h *home) (named string){
		"cannot be written": func(h *home) string {
			if err := os.WriteFile(filepath.Join(h.dir, "config"), nil, 0o600); err != nil {
				h.t.Fatal(err)
			}
			return filepath.Join(h.dir, "config")
		},
		"written by hand": func(h *home) string {
			if err := os.MkdirAll(filepath.Dir(h.contextFile()), 0o700); err != nil {
				h.t.Fatal(err)
			}
			if err := os.WriteFile(h.contextFile(), []byte("server = 'tls://nats.example.com'\ntoken = 'hunter2'\n"), 0o600); err != nil {
				h.t.Fatal(err)
			}
			return h.contextFile()
		},
		"no home": func(h *home) string {
			h.env = slices.DeleteFunc(h.env, func(v string) bool { return strings.HasPrefix(v, "HOME=") || strings.HasPrefix(v, "XDG_") })
			return "HOME"
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			named := spoil(h)
			p := h.up("--devices", "1")
			testwait.For(t, patience, "a word on stderr", func() bool { return strings.Contains(p.stderr.String(), "\n") })
			if said := p.stderr.String(); !strings.Contains(said, named) || !strings.Contains(said, "--server "+p.line("NATS")) || strings.Count(said, "\n") != 1 || strings.Contains(said, "hunter2") {
				t.Errorf("it says %q, want one line that names %s and the flags", said, named)
			}
			if o := h.fleet(p.flagsOf(p.line("admin token"))...); o.code != 0 {
				t.Errorf("with the flags: %s", o)
			}
			if code, took := p.interrupt(); code != 0 || took > 2*time.Second {
				t.Errorf("exit code %d after %v; %s", code, took, &p.stderr)
			}
			if name == "written by hand" {
				if raw, err := os.ReadFile(h.contextFile()); err != nil || !strings.Contains(string(raw), "hunter2") {
					t.Errorf("the file is gone: %s, %v", raw, err)
				}
			}
		})
	}
}

func TestUpSaysInJSONThatThereIsNoContext(t *testing.T) {
	h := newHome(t)
	if err := os.WriteFile(filepath.Join(h.dir, "config"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := h.fleet("up", "--port", "0", "--auth", "userpass", "--devices", "1", "--exit-after-ping", "--runtime", "off", "-o", "json")
	if o.code != 0 || !strings.Contains(o.stdout, `"no_context":"context file: `) {
		t.Errorf("%s", o)
	}
}

func TestUpEndsWithItsReader(t *testing.T) {
	h := newHome(t)
	p := &process{t: t, cmd: h.command(t.Context(), "up", "--port", "0", "--runtime", "off", "--token-lifetime", "5s")}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = out.Close() // as `fleet up | head -1` does; the next token is written in 4 s at the latest
	_ = p.cmd.Wait()
	if code := p.cmd.ProcessState.ExitCode(); code != exitBrokenPipe || strings.Contains(p.stderr.String(), "fleet: ") || strings.Contains(p.stderr.String(), "stdout") {
		t.Errorf("exit code %d, stderr: %s", code, &p.stderr)
	}
	if left := h.leftovers(); len(left) > 0 {
		t.Errorf("left: %v; stderr: %s", left, &p.stderr)
	}
}

// normal replaces what differs from run to run.
func normal(s string) string {
	for _, r := range []struct{ pattern, by string }{
		{`127\.0\.0\.1:\d+`, "127.0.0.1:N"},
		{`"(admin_token|password|inbox_prefix|agent_version|boot_id|instance|request_id|user|uid|payload_sha256|prev)":"[^"]{8,}"`, `"$1":"S"`},
		{`"(agent_version|version)":"[^"]*"`, `"$1":"S"`},
		{`"time":"[^"]+",`, ""}, // of a ping's reply: absent until the agent knows it
		{`"(started_at|status_at|last_heartbeat|since)":"[^"]+"`, `"$1":"T"`},
		{`"(rtt_us|uptime_s|memory_rss_bytes|duration_us|last_heartbeat_age_s|subscribed_for_ms|seq)":[\d.e+-]+`, `"$1":0`},
	} {
		s = regexp.MustCompile(r.pattern).ReplaceAllString(s, r.by)
	}
	return s
}

const goldenPing = `{"device_id":"vm-device-00","outcome":"ok","rtt_us":0,"reply":{"device_id":"vm-device-00","agent_version":"S","uptime_s":0,` +
	`"boot_id":"S","instance":"S","protocol":1,"runtime":"disabled","memory_rss_bytes":0}}` + "\n"

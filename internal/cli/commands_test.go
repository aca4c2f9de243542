package cli

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestSecondTerminalNeedsNoFlags walks through the commands as a person would,
// beside a running `fleet up`.
func TestSecondTerminalNeedsNoFlags(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h := newHome(t)
		p := h.up("--auth", auth)

		if o := h.fleet("ping", "vm-device-00"); o.code != 0 || !strings.HasPrefix(o.stdout, "vm-device-00  ok  ") || o.stderr != "" {
			t.Errorf("ping: %s", o)
		}
		if o := h.fleet("ping", "vm-device-00", "-o", "json"); o.code != 0 || normal(o.stdout) != goldenPing || o.stderr != "" {
			t.Errorf("ping -o json: %s\nwant %s", o, goldenPing)
		}
		if o := h.fleet("ping", "--all", "-o", "json"); o.code != 0 || strings.Count(o.stdout, `"outcome":"ok"`) != 3 {
			t.Errorf("ping --all: %s", o)
		}
		unknown := `{"device_id":"x","outcome":"unknown_device","message":"`
		if o := h.fleet("ping", "x", "-o", "json"); o.code != 3 || !strings.HasPrefix(o.stdout, unknown) || o.stderr != "" {
			t.Errorf("ping of nobody, as JSON: %s", o)
		}
		if o := h.fleet("ping", "x"); o.code != 3 || o.stdout != "" || !strings.HasPrefix(o.stderr, "fleet: ping x: unknown_device: ") || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("ping of nobody: %s", o)
		}
		if o := h.fleet("ping", "x", "vm-device-00"); o.code != 3 || !strings.Contains(o.stdout, "vm-device-00  ok") || !strings.Contains(o.stderr, "2 devices: 1 ok, 1 unknown_device") {
			t.Errorf("ping of one and nobody: %s", o)
		}

		if o := h.fleet("label", "vm-device-00", "site=lab", "rack=4"); o.code != 0 || o.stdout != "vm-device-00  rack=4,site=lab\n" {
			t.Errorf("label: %s", o)
		}
		if o := h.fleet("label", "vm-device-00", "rack-", "-o", "json"); o.code != 0 || o.stdout != `{"device_id":"vm-device-00","labels":{"site":"lab"}}`+"\n" {
			t.Errorf("label: %s", o)
		}
		if o := h.fleet("ping", "-l", "site=lab", "-o", "json"); o.code != 0 || normal(o.stdout) != goldenPing {
			t.Errorf("ping -l: %s", o)
		}
		if o := h.fleet("ping", "-l", "site=moon"); o.code != 3 || !strings.Contains(o.stderr, "no device has these labels") {
			t.Errorf("ping -l of nobody: %s", o)
		}

		if o := h.fleet("devices"); o.code != 0 || strings.Count(o.stdout, "\n") != 4 || !strings.HasPrefix(o.stdout, "DEVICE        ONLINE  LAST HEARTBEAT") || !strings.Contains(o.stdout, "site=lab") {
			t.Errorf("devices: %s", o)
		}
		golden := `{"device_id":"vm-device-00","online":true,"last_heartbeat":"T","last_heartbeat_age_s":0,"agent_version":"S","runtime":"disabled","desired_revision":0,"labels":{"site":"lab"}}` + "\n"
		if o := h.fleet("devices", "-l", "site=lab", "-o", "json"); o.code != 0 || normal(o.stdout) != golden {
			t.Errorf("devices -l: %s\ngot  %s\nwant %s", o, normal(o.stdout), golden)
		}
		if o := h.fleet("devices", "vm-device-00", "-o", "json"); o.code != 0 || !strings.Contains(o.stdout, `"status":{"schema":1`) || !strings.Contains(o.stdout, `"heartbeat":{"schema":1`) {
			t.Errorf("devices DEVICE: %s", o)
		}
		if o := h.fleet("devices", "vm-device-00"); o.code != 0 || !strings.Contains(o.stdout, "online            yes\n") {
			t.Errorf("devices DEVICE: %s", o)
		}
		if o := h.fleet("devices", "x"); o.code != 3 {
			t.Errorf("devices x: %s", o)
		}

		if o := h.fleet("provision", "-o", "json"); o.code != 0 || !strings.Contains(o.stdout, `{"stream":"AUDIT","action":"unchanged"}`) || strings.Contains(o.stdout, "created") {
			t.Errorf("provision: %s", o)
		}
		checkAudit(t, h)
		checkCommandLog(t, h, p)
		if code, took := p.interrupt(); code != 0 || took > 2*time.Second {
			t.Errorf("Ctrl-C: exit code %d after %v; %s", code, took, &p.stderr)
		}
	})
}

func checkAudit(t *testing.T, h *home) {
	t.Helper()
	tail := h.start("audit", "-f", "--device", "vm-device-00", "-o", "json")
	var o outputOf
	testwait.For(t, patience, "six audit records", func() bool {
		o = h.fleet("audit", "--device", "vm-device-00", "-o", "json")
		return strings.Count(o.stdout, "\n") >= 6 // up, and five pings above
	})
	if o.code != 0 || strings.Contains(o.stdout, `"gap"`) {
		t.Errorf("audit: %s", o)
	}
	for line := range strings.Lines(o.stdout) {
		var r command.AuditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.DeviceID != "vm-device-00" || r.Verb != command.VerbPing || r.Outcome != command.OutcomeOK {
			t.Errorf("record %s", line)
		}
	}
	before := strings.Count(o.stdout, "\n")
	testwait.For(t, patience, "the stored records in the tail", func() bool { return strings.Count(tail.stdout.String(), "\n") >= before })
	if o := h.fleet("ping", "vm-device-00"); o.code != 0 {
		t.Errorf("ping: %s", o)
	}
	testwait.For(t, patience, "the new record in the tail", func() bool { return strings.Count(tail.stdout.String(), "\n") == before+1 })
	if strings.Contains(tail.stdout.String(), `"gap"`) {
		t.Errorf("gaps in the tail: %s", &tail.stdout)
	}
	if code, took := tail.interrupt(); code != 0 || took > 2*time.Second {
		t.Errorf("Ctrl-C: exit code %d after %v; %s", code, took, &tail.stderr)
	}
	if o := h.fleet("audit"); o.code != 0 || !strings.Contains(o.stdout, "  vm-device-01  ping ") {
		t.Errorf("audit as text: %s", o)
	}
}

func checkCommandLog(t *testing.T, h *home, p *process) {
	t.Helper()
	info, err := os.Stat(h.commandLog())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("command log: %v, %v", info, err)
	}
	raw, err := os.ReadFile(h.commandLog())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) != 3 { // the three pings of x
		t.Errorf("command log: %s", raw)
	}
	for _, line := range lines {
		var e commandLogEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.DeviceID != "x" || e.Outcome != command.OutcomeUnknownDevice || e.Verb != command.VerbPing || e.RequestID == "" || e.Server != p.line("NATS") {
			t.Errorf("command log: %s", line)
		}
	}
}

// TestEveryDeviceAskedForHasALine holds that one bad id among good ones keeps
// none of them from being pinged.
func TestEveryDeviceAskedForHasALine(t *testing.T) {
	h := newHome(t)
	p := h.up("--auth", "userpass", "--devices", "1")
	outcomes := func(o outputOf) map[string]command.Outcome {
		got := map[string]command.Outcome{}
		for line := range strings.Lines(o.stdout) {
			var r result
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			got[r.DeviceID] = r.Outcome
		}
		return got
	}
	o := h.fleet("ping", "vm-device-00", "B", "a.b", "-o", "json")
	if got := outcomes(o); o.code != 2 || len(got) != 3 || got["vm-device-00"] != "ok" || got["B"] != "rejected" || got["a.b"] != "rejected" {
		t.Errorf("%s", o)
	}
	if o := h.fleet("ping", "nobody", "B", "-o", "json"); o.code != 3 || len(outcomes(o)) != 2 {
		t.Errorf("the larger of the two codes: %s", o)
	}
	if o := h.fleet("ping", "vm-device-00", "B"); o.code != 2 || !strings.HasPrefix(o.stdout, "vm-device-00  ok  ") || !strings.Contains(o.stderr, `device id "B"`) {
		t.Errorf("as text: %s", o)
	}
	p.interrupt()
	nobody := []string{"--server", "nats://127.0.0.1:1", "--user", "u", "--password", "p", "-o", "json"}
	o = h.fleet(append([]string{"ping", "a", "B"}, nobody...)...)
	if got := outcomes(o); o.code != 2 || got["a"] != "failed" || got["B"] != "rejected" {
		t.Errorf("without a broker: %s", o)
	}
}

// TestFormatIsHonouredWhereFlagsAreWrong: who asks for JSON gets the fault of the
// command line as JSON, wherever on it -o stands.
func TestFormatIsHonouredWhereFlagsAreWrong(t *testing.T) {
	h := newHome(t)
	for _, args := range [][]string{
		{"ping", "--bogus", "-o", "json"},
		{"ping", "-o", "json", "x", "--timeout", "x"},
		{"ping", "--timeout", "x", "-ojson"},
		{"ping", "--bogus", "--output=json"},
		{"ping", "--bogus", "--output", "json"},
		{"pign", "-o=json"},
		{"audit", "x", "-o", "json"},
		{"label", "x", "-o", "json"},
		{"cluster", "status", "--bogus", "-o", "json"},
	} {
		o := h.fleet(args...)
		var line result
		if err := json.Unmarshal([]byte(o.stdout), &line); err != nil || o.code != 2 || line.Outcome != command.OutcomeRejected || line.Message == "" {
			t.Errorf("%v: %s", args, o)
		}
	}
	for _, args := range [][]string{{"ping", "--bogus"}, {"ping", "--bogus", "-o", "text"}, {"ping", "--bogus", "--", "-o", "json"}} {
		if o := h.fleet(args...); o.stdout != "" || o.code != 2 {
			t.Errorf("%v: %s", args, o)
		}
	}
}

// TestReaderThatGoesAwayIsNoError: `fleet ping --all | head -1` ends as other
// programs do, without a word.
func TestReaderThatGoesAwayIsNoError(t *testing.T) {
	h := newHome(t)
	p := h.up("--auth", "userpass", "--devices", "3")
	testwait.For(t, patience, "an audit record", func() bool { return h.fleet("audit").stdout != "" })
	for _, args := range [][]string{{"ping", "--all"}, {"ping", "--all", "-o", "json"}, {"devices"}, {"audit"}, {"audit", "-f"}, {"version"}, {"--help"}} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_ = read.Close()
		cmd := h.command(t.Context(), args...)
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = write, &stderr
		_ = cmd.Run()
		_ = write.Close()
		if code := cmd.ProcessState.ExitCode(); code != exitBrokenPipe || stderr.String() != "" {
			t.Errorf("%v: exit code %d, stderr: %s", args, code, &stderr)
		}
	}
	p.interrupt()
}

// TestProvisionNamesTheRealCause: what JetStream refuses is not a matter of roles.
func TestProvisionNamesTheRealCause(t *testing.T) {
	h := newHome(t)
	p := h.up("--auth", "userpass", "--devices", "1")
	o := h.fleet("provision", "--replicas", "3")
	if o.code != 1 || !strings.Contains(o.stderr, "replicas > 1 not supported in non-clustered mode") || strings.Contains(o.stderr, "role") || strings.Count(o.stderr, "\n") != 1 {
		t.Errorf("%s", o)
	}
	p.interrupt()
}

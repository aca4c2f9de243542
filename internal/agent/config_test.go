package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

const minimal = `[agent]
device_id = "vm-device-00"
[credentials]
type = "shared"
user = "device"
password = "hidden-secret"
`

func TestTheDocumentedConfigurationIsRead(t *testing.T) {
	c, err := ParseConfig([]byte(`[agent]
device_id = "vm-device-00"
runtime_enabled = false
labels = { site = "lab" }
state_dir = "/var/lib/x"
max_concurrent = 8
audit_max_bytes = 1048576
stop_timeout = "3s"
[nats]
url = ["tls://a:4222", "nats://127.0.0.1:4222"]
insecure = true
[nats.tls]
ca = "/ca.pem"
cert = "/c.pem"
key = "/k.pem"
[accounts]
ops = "TENANT-OPS"
[credentials]
type = "token-file"
token_file = "/token"
[runtime]
socket = "unix:///run/user/1000/podman/podman.sock"
[exec]
host = true
user = "fleet"
[policy]
verbs = ["logs", "exec"]
containers = ["web", "hello/*"]
callers = ["https://id.example#*"]
volumes = ["/srv/*"]
max_sessions = 9
max_sessions_per_caller = 4
max_duration = "1h"
idle_timeout = "10m"
[log]
level = "debug"
format = "json"
`))
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.Options(slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	if o.DeviceID != "vm-device-00" || o.RuntimeEnabled || o.Labels["site"] != "lab" || o.StateDir != "/var/lib/x" ||
		o.MaxConcurrent != 8 || o.AuditMaxBytes != 1<<20 || o.DrainTimeout != 3*time.Second || o.OpsAccount != "TENANT-OPS" ||
		len(o.NATS.URLs) != 2 || !o.NATS.Insecure || o.NATS.TLS != (natsconn.TLS{CA: "/ca.pem", Cert: "/c.pem", Key: "/k.pem"}) ||
		o.RuntimeSocket != "unix:///run/user/1000/podman/podman.sock" || o.NATS.Credentials == nil || !c.Exec.Host || len(o.Policy.Volumes) != 1 {
		t.Errorf("%+v", o)
	}
}

func TestPolicyOfVolumes(t *testing.T) {
	for _, row := range []struct {
		policy, volume string
		allowed        bool
	}{
		{"", "/:/x", true},
		{"volumes = []", "/srv:/x", false},
		{"volumes = []", "data:/x", true},
		{`volumes = ["/srv/*"]`, "/srv/a:/x:ro", true},
		{`volumes = ["/srv/*"]`, "/srv/a/b:/x", false},
		{`volumes = ["/srv/*"]`, "/srv:/x", false},
		{`volumes = ["/*"]`, "/:/x", true},
	} {
		c, err := ParseConfig([]byte(minimal + "[policy]\n" + row.policy + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.policy().Service(command.Service{Volumes: []string{row.volume}}); (err == nil) != row.allowed {
			t.Errorf("%s: %s: %v", row.policy, row.volume, err)
		}
	}
}

func TestTheSmallestConfigurationHasTheDefaults(t *testing.T) {
	c, err := ParseConfig([]byte(minimal + "[nats]\nurl = \"nats://127.0.0.1:4333\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.Options(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !o.RuntimeEnabled || o.StateDir != DefaultStateDir || len(o.NATS.URLs) != 1 {
		t.Errorf("%+v", o)
	}
	o.setDefaults()
	if o.OpsAccount != "OPS" || o.MaxConcurrent != 64 || o.HeartbeatInterval != 15*time.Second || o.AuditMaxBytes != 16<<20 || o.Protocol != 1 {
		t.Errorf("%+v", o)
	}
	c, err = ParseConfig([]byte(strings.Replace(minimal, "[credentials]", "state_dir = \"\"\n[credentials]", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := c.Options(nil); o.StateDir != "" {
		t.Errorf("state_dir %q", o.StateDir)
	}
}

func TestEachBadKeyIsNamed(t *testing.T) {
	swap := func(old, new string) string { return strings.Replace(minimal, old, new, 1) }
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"agent.device_id", "[credentials] type"}},
		{"unknown key", swap("[credentials]", "devise_id = 1\n[credentials]"), []string{"line 3", `"agent.devise_id"`}},
		{"unknown table", minimal + "[polcy]\nx = 1\n", []string{"line 7", "polcy"}},
		{"two unknown keys", minimal + "x = 1\n[nats]\ny = 1\n", []string{`"credentials.x"`, `"nats.y"`}},
		{"device id", swap("vm-device-00", "vm.device"), []string{"agent.device_id", "vm.device"}},
		{"wrong kind", swap(`"vm-device-00"`, "7"), []string{"line 2", "agent.device_id"}},
		{"not TOML", "[agent", []string{"line 1"}},
		{"url", minimal + "[nats]\nurl = \"http://x\"\n", []string{"nats.url"}},
		{"url of the wrong kind", minimal + "[nats]\nurl = 7\n", []string{"nats.url"}},
		{"plaintext", minimal + "[nats]\nurl = \"nats://nats.example:4222\"\n", []string{"nats.url", "plaintext"}},
		{"password in the url", minimal + "[nats]\nurl = \"nats://u:hidden-secret@127.0.0.1\"\n", []string{"nats.url"}},
		{"half a certificate", minimal + "[nats.tls]\ncert = \"/x\"\n", []string{"nats.tls"}},
		{"account", minimal + "[accounts]\nops = \"a.b\"\n", []string{"accounts.ops"}},
		{"credentials", swap("shared", "magic"), []string{"[credentials] type"}},
		{"level", minimal + "[log]\nlevel = \"loud\"\n", []string{"log.level"}},
		{"format", minimal + "[log]\nformat = \"xml\"\n", []string{"log.format"}},
		{"concurrency", swap("[credentials]", "max_concurrent = -1\n[credentials]"), []string{"agent.max_concurrent"}},
		{"audit bytes", swap("[credentials]", "audit_max_bytes = 1\n[credentials]"), []string{"agent.audit_max_bytes"}},
		{"stop timeout", swap("[credentials]", "stop_timeout = \"-1s\"\n[credentials]"), []string{"agent.stop_timeout"}},
		{"stop timeout, no duration", swap("[credentials]", "stop_timeout = \"soon\"\n[credentials]"), []string{"line 3"}},
		{"host without a user", minimal + "[exec]\nhost = true\n", []string{"exec.user"}},
		{"policy verb", minimal + "[policy]\nverbs = [\"ping\"]\n", []string{"policy.verbs", "ping"}},
		{"policy pattern", minimal + "[policy]\ncontainers = [\"[\"]\n", []string{"policy.containers"}},
		{"policy volumes", minimal + "[policy]\nvolumes = [\"srv/*\"]\n", []string{"policy.volumes", "srv/*"}},
		{"policy volumes that climb", minimal + "[policy]\nvolumes = [\"/srv/../*\"]\n", []string{"policy.volumes"}},
		{"policy sessions", minimal + "[policy]\nmax_sessions = -1\n", []string{"policy.max_sessions"}},
		{"policy duration", minimal + "[policy]\nmax_duration = \"-1s\"\n", []string{"policy.max_duration"}},
		{"label", swap("[credentials]", "labels = { \"\" = \"x\" }\n[credentials]"), []string{"agent.labels"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParseConfig([]byte(tc.text))
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %s", err, w)
				}
			}
			if strings.Contains(err.Error(), "hidden-secret") {
				t.Errorf("quotes a secret: %v", err)
			}
		})
	}
}

func TestAConfigurationFileThatIsMissingIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.toml")
	if _, err := LoadConfig(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("err = %v", err)
	}
	if err := os.WriteFile(file, []byte("x = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("err = %v", err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"no device id":        {},
		"device id":           {DeviceID: "a.b"},
		"handler":             {DeviceID: "d1", Handlers: map[command.Verb]Handler{"reboot": newGate()}},
		"negative":            {DeviceID: "d1", MaxConcurrent: -1},
		"labels":              {DeviceID: "d1", Labels: map[string]string{"": "x"}},
		"label of many bytes": {DeviceID: "d1", Labels: map[string]string{"x": strings.Repeat("x", maxLabelBytes)}},
		"runtime socket":      {DeviceID: "d1", RuntimeEnabled: true, RuntimeSocket: "what is this"},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("[nats]\nurl = [\"a\", 1]\n"))
	f.Add([]byte("[nats]\nurl = \"\"\"\na\"\"\"\n"))
	f.Add([]byte("[agent]\nlabels = { a = \"b\" }\nruntime_enabled = 1\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseConfig(raw)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		o, err := c.Options(nil)
		if err != nil {
			t.Fatalf("valid, but no options: %v", err)
		}
		o.RuntimeEnabled = false // the socket is checked when it is used
		if _, err := New(o); err != nil {
			t.Fatalf("valid, but refused: %v", err)
		}
	})
}

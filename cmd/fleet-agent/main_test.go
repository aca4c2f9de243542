package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheAgentStaysSmall keeps out of the program what a device has no use for.
func TestTheAgentStaysSmall(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		for _, banned := range []string{
			"k8s.io/", "sigs.k8s.io/", "github.com/prometheus/", "github.com/nats-io/nats-server/", "github.com/nats-io/nats.go/jetstream",
			"github.com/spf13/cobra", "github.com/zitadel/oidc/v3/pkg/op", "google.golang.org/grpc",
			"github.com/harmony-fleet/fleet/client", "github.com/harmony-fleet/fleet/internal/broker/", "github.com/harmony-fleet/fleet/internal/callout",
			"github.com/harmony-fleet/fleet/internal/issuer", "github.com/harmony-fleet/fleet/internal/stack", "github.com/harmony-fleet/fleet/internal/cli",
		} {
			if strings.HasPrefix(pkg+"/", banned+"/") || strings.HasSuffix(banned, "/") && strings.HasPrefix(pkg+"/", banned) {
				t.Errorf("fleet-agent imports %s", pkg)
			}
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const good = `[agent]
device_id = "d1"
runtime_enabled = false
state_dir = ""
[nats]
url = "nats://127.0.0.1:1"
[credentials]
type = "shared"
user = "device"
password = "hidden-secret"
`

func TestCommandLine(t *testing.T) {
	bad := write(t, strings.Replace(good, "device_id", "devise_id", 1))
	notADir := write(t, "")
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"help", []string{"--help"}, 0, "Usage", ""},
		{"version", []string{"--version"}, 0, "fleet-agent ", ""},
		{"nothing", nil, 2, "", "--config is needed"},
		{"unknown flag", []string{"--verbose"}, 2, "", "verbose"},
		{"argument", []string{"--config", "x", "y"}, 2, "", `unexpected argument "y"`},
		{"no file", []string{"--config", "/no/such/file"}, 2, "", "/no/such/file"},
		{"bad file", []string{"--config", bad}, 2, "", `line 2: unknown key "agent.devise_id"`},
		{"check", []string{"--config", write(t, good), "--check"}, 0, "is valid", ""},
		{"check, bad socket", []string{"--check", "--config", write(t, strings.Replace(good, "runtime_enabled = false", "", 1)+"[runtime]\nsocket = \"what\"\n")}, 2, "", "runtime socket"},
		{"state dir", []string{"--config", write(t, strings.Replace(good, `state_dir = ""`, `state_dir = "`+notADir+`/x"`, 1))}, 1, "", "state_dir"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), tc.args, &stdout, &stderr); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
			if strings.Contains(stdout.String()+stderr.String(), "hidden-secret") {
				t.Error("shows a secret")
			}
		})
	}
}

func TestASignalEndsItWithZero(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if code := run(ctx, []string{"--config", write(t, good)}, &stdout, &stderr); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if !strings.Contains(stderr.String(), "agent stopped") {
		t.Errorf("%s", stderr.String())
	}
}

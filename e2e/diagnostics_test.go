package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestDiagnosticsTellEverythingButSecrets(t *testing.T) {
	t.Setenv(EnvDiagnostics, t.TempDir())
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode})
		pingAll(t, s)
		// A device answers earlier than its node has told the cluster that its Pod runs,
		// and before that there is no log to be had.
		told, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		err := s.watch.await(told, func(pods map[string]*corev1.Pod) (bool, error) {
			for _, pod := range pods {
				if pod.Status.Phase != corev1.PodRunning {
					return false, nil
				}
			}
			return len(pods) > 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		dir, err := s.SaveDiagnostics()
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(os.Getenv(EnvDiagnostics), s.Namespace); dir != want {
			t.Errorf("saved in %s, want %s", dir, want)
		}
		files := map[string]string{}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			files[e.Name()] = string(content)
		}
		agent := podName(s.DeviceIDs[0])
		want := map[string]string{
			agent + ".log": "taking commands", agent + ".yaml": "runAsNonRoot: true", "nats.log": "Server is ready",
			"nats.yaml": "phase: Running", "events.txt": "Scheduled", "pods.txt": agent, "nats.json": `"jetstream"`,
		}
		if mode == Callout {
			want["fleet-callout.log"], want["fleet-oidc.log"] = "login allowed", "token issued"
		}
		for name, part := range want {
			if !strings.Contains(files[name], part) {
				t.Errorf("%s does not say %q:\n%s", name, part, files[name])
			}
		}
		var state struct {
			Varz, Connz, Jsz struct{ Data json.RawMessage }
		}
		if err := json.Unmarshal([]byte(files["nats.json"]), &state); err != nil {
			t.Errorf("nats.json: %v", err)
		}
		if !strings.Contains(string(state.Connz.Data), "fleet-agent "+s.DeviceIDs[0]) || !strings.Contains(string(state.Jsz.Data), "KV_desired-state") {
			t.Errorf("the state of NATS lacks connections or streams:\n%s", files["nats.json"])
		}
		secrets := map[string]string{
			"a password": s.secrets.ops, "the system password": s.secrets.system, "the device password": s.secrets.device,
			"the callout password": s.secrets.callout, "a private key": "PRIVATE KEY", "a token": "eyJ",
		}
		for what, secret := range secrets {
			for name, content := range files {
				if strings.Contains(content, secret) {
					t.Errorf("%s is in %s", what, name)
				}
			}
		}
	})
}

// Where everybody may write, somebody else may have been there first.
func TestDiagnosticsGoToNobodyElsesFolder(t *testing.T) {
	for name, prepare := range map[string]func(base string) error{
		"a link":                 func(base string) error { return os.Symlink(t.TempDir(), base) },
		"a file":                 func(base string) error { return os.WriteFile(base, nil, 0o600) },
		"others can write to it": func(base string) error { return errors.Join(os.Mkdir(base, 0o700), os.Chmod(base, 0o777)) },
		"somebody else's": func(base string) error {
			if os.Geteuid() != 0 {
				t.Log("only root can give a directory away")
				return os.WriteFile(base, nil, 0o600)
			}
			return errors.Join(os.Mkdir(base, 0o755), os.Chown(base, 65534, 65534))
		},
	} {
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		t.Setenv(EnvDiagnostics, "")
		if err := prepare(filepath.Join(tmp, "harmony-fleet-e2e")); err != nil {
			t.Fatal(err)
		}
		if dir, err := diagnosticsDir("e2e-x"); err == nil {
			t.Errorf("%s: %s is used", name, dir)
		}
	}
	t.Setenv("TMPDIR", t.TempDir())
	for range 2 {
		dir, err := diagnosticsDir("e2e-x")
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}

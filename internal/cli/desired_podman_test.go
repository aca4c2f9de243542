//go:build linux

package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestAContainerOnADevice is the quick start: a fleet comes up, a document is
// put, and the container answers on its port.
func TestAContainerOnADevice(t *testing.T) {
	p := podmantest.Start(t)
	p.Image(t, "localhost/hello:1")
	h := newHome(t)
	up := h.up("--devices", "2", "--runtime", p.Socket)
	example, err := os.ReadFile("../../examples/hello.json")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("docker.io/library/nginx:1-alpine", "localhost/hello:1", `"ports"`, `"command": ["serve", "hello"], "ports"`).Replace(string(example))
	if o := h.fleet("desired", "put", "vm-device-00", "-f", h.file("hello.json", text)); o.code != 0 {
		t.Fatalf("put: %s", o)
	}
	awaitDevice(t, h, "vm-device-00", "runs", func(s command.Status) bool { return s.Deployments["hello"].Phase == command.PhaseRunning })
	testwait.For(t, patience, "the container answers", func() bool {
		got, err := p.Get("http://127.0.0.1:8080/")
		return err == nil && got == "hello"
	})
	for _, args := range [][]string{{"devices"}, {"devices", "vm-device-00"}} {
		if o := h.fleet(args...); !strings.Contains(o.stdout, "running") || strings.Contains(o.stdout, "NotReady") {
			t.Errorf("fleet %v: %s", args, o)
		}
	}
	// Two devices share the engine.
	other := strings.NewReplacer("8080:80", "8081:80", `"hello"],`, `"other"],`).Replace(text)
	if o := h.fleet("desired", "put", "vm-device-01", "-f", h.file("other.json", other)); o.code != 0 {
		t.Fatalf("put: %s", o)
	}
	testwait.For(t, patience, "the other container answers", func() bool {
		got, err := p.Get("http://127.0.0.1:8081/")
		return err == nil && got == "other"
	})
	if o := h.fleet("desired", "delete", "vm-device-00"); o.code != 0 {
		t.Fatalf("delete: %s", o)
	}
	awaitDevice(t, h, "vm-device-00", "nothing runs", func(s command.Status) bool { return s.DesiredRevision == 3 && len(s.Deployments) == 0 })
	if out, err := p.Run("ps", "--all", "--format", "{{.Names}}"); err != nil || !strings.HasPrefix(out, "fleet_vm-device-01_hello_hello_") || strings.Contains(out, "\n") {
		t.Errorf("containers: %q, %v", out, err)
	}
	// Containers outlive the agents.
	if code, _ := up.interrupt(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got, err := p.Get("http://127.0.0.1:8081/"); err != nil || got != "other" {
		t.Errorf("%q, %v", got, err)
	}
}

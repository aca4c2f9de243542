package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestDeploymentsAreSummedUpFromWhatDevicesReport(t *testing.T) {
	h := newHome(t)
	h.up("--devices", "3", "--runtime", "off")
	if o := h.fleet("deployments"); o.code != 0 || o.stdout != "" || !strings.Contains(o.stderr, "no device reports a deployment") {
		t.Errorf("with none: %s", o)
	}
	if o := h.fleet("deployments", "web"); o.code != 1 || !strings.Contains(o.stderr, "no device reports a deployment web") {
		t.Errorf("one that is not there: %s", o)
	}
	// Without a container engine every one of them is runtime_unavailable.
	doc := h.file("web.json", `{"schema":1,"deployments":{"web":{"type":"PodmanV0","data":{"services":[{"name":"main","image":"example.org/i:1"}]}},"odd":{"type":"PodmanV0","data":{"services":[{"name":"main","image":"example.org/i:1"}]}}}}`)
	for _, id := range []string{"vm-device-00", "vm-device-01"} {
		if o := h.fleet("desired", "put", id, "-f", doc); o.code != 0 {
			t.Fatal(o)
		}
	}
	var sum deploymentSum
	testwait.For(t, patience, "two devices report it", func() bool {
		sum = deploymentSum{}
		for line := range strings.Lines(h.fleet("deployments", "-o", "json").stdout) {
			var s deploymentSum
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatal(err)
			}
			if s.Deployment == "web" {
				sum = s
			}
		}
		return sum.Devices == 2
	})
	if sum.Ready != 0 || sum.Offline != 0 || sum.Phases[command.PhaseRuntimeUnavailable] != 2 {
		t.Errorf("%+v", sum)
	}
	o := h.fleet("deployments")
	if o.code != 0 || !strings.HasPrefix(o.stdout, "DEPLOYMENT") || !strings.Contains(o.stdout, "2 runtime_unavailable") {
		t.Errorf("%s", o)
	}
	o = h.fleet("deployments", "web")
	if o.code != 0 || strings.Count(o.stdout, "\n") != 3 || !strings.Contains(o.stdout, "vm-device-01") || strings.Contains(o.stdout, "vm-device-02") {
		t.Errorf("%s", o)
	}
	if o := h.fleet("deployments", "a", "b"); o.code != 2 {
		t.Errorf("two names: %s", o)
	}
}

// The numbers are those of a Deployment's status.
func TestSumOfADeployment(t *testing.T) {
	sum := deploymentSum{Phases: map[command.Phase]int{}}
	for _, d := range []struct {
		online bool
		phase  command.Phase
	}{
		{true, command.PhaseRunning}, {true, command.PhaseExited}, {false, command.PhaseRunning},
		{true, command.PhaseRejected}, {true, command.PhaseFailed}, {true, command.PhaseBackoff},
	} {
		sum.add(d.online, command.DeploymentStatus{Phase: d.phase})
	}
	if sum.Devices != 6 || sum.Ready != 2 || sum.Offline != 1 || sum.Rejected != 1 || sum.Failed != 2 {
		t.Errorf("%+v", sum)
	}
}

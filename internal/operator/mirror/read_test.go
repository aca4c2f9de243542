package mirror

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/harmony-fleet/fleet/command"
)

// FuzzReadStatus: whatever a device sends, what is kept of it is bounded, of that
// device, and can go into an object of Kubernetes.
func FuzzReadStatus(f *testing.F) {
	for _, s := range []command.Status{
		{Schema: command.Schema, DeviceID: "d1"},
		{Schema: command.Schema, DeviceID: "d1", Deployments: map[string]command.DeploymentStatus{
			"web": {Phase: command.PhaseFailed, Error: &command.ErrorDetail{Message: strings.Repeat("é", 400)}, Services: map[string]command.ServiceStatus{"web": {LastError: "x"}}},
		}, Conditions: []command.Condition{{Type: command.ConditionIDClash, Status: true}}, Labels: map[string]string{"a": "b"}},
	} {
		data, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readStatus("d1", data)
		if err != nil {
			return
		}
		if s.DeviceID != "d1" || len(s.Deployments) > command.MaxDeployments || len(s.Labels) > maxLabels || len(s.Conditions) > maxConditions {
			t.Fatalf("%+v", s)
		}
		for name, d := range s.Deployments {
			if command.CheckDeploymentName(name) != nil || len(d.Phase) > maxWord || len(d.Fault()) > maxMessage+command.MaxDeviceID+2 || !utf8.ValidString(d.Fault()) {
				t.Fatalf("%q: %+v", name, d)
			}
		}
		Device{Status: &s, Online: true}.Ready()
	})
}

func TestReady(t *testing.T) {
	running := map[string]command.DeploymentStatus{"a": {Phase: command.PhaseRunning}, "b": {Phase: command.PhaseExited}}
	for name, tc := range map[string]struct {
		change func(*Device)
		reason string // empty: ready
		text   string
	}{
		"all runs":     {func(*Device) {}, "", "2 of 2"},
		"nothing runs": {func(d *Device) { d.Status.Deployments, d.Status.Runtime = nil, command.RuntimeDisabled }, "", "0 of 0"},
		"offline":      {func(d *Device) { d.Online = false }, "Offline", "not online"},
		"unreadable":   {func(d *Device) { d.Status, d.StatusFault = nil, "bad" }, "DeviceReports", "bad"},
		"no engine":    {func(d *Device) { d.Status.Runtime = command.RuntimeUnavailable }, "RuntimeUnavailable", "engine"},
		"no runtime":   {func(d *Device) { d.Status.Runtime = command.RuntimeDisabled }, "RuntimeUnavailable", "engine"},
		"clash": {func(d *Device) {
			d.Status.Conditions = []command.Condition{{Type: command.ConditionIDClash, Status: true, Message: "two"}}
		}, "DeviceReports", "IDClash: two"},
		"no clash any more": {func(d *Device) { d.Status.Conditions = []command.Condition{{Type: command.ConditionIDClash}} }, "", ""},
		"behind":            {func(d *Device) { d.Document.Revision = 9 }, "DeploymentsUnready", "revision 9"},
		"one fails": {func(d *Device) {
			d.Status.Deployments = map[string]command.DeploymentStatus{"a": {Phase: command.PhaseRunning}, "c": {
				Phase: command.PhaseBackoff, Services: map[string]command.ServiceStatus{"x": {Phase: command.PhaseBackoff, LastError: "no image"}},
			}}
		}, "DeploymentsUnready", "1 of 2 deployments run; c is backoff: x: no image"},
	} {
		d := Device{ID: "d1", Online: true, StatusSeq: 1, Status: &command.Status{Runtime: command.RuntimeReady, DesiredRevision: 8, Deployments: running}}
		d.Document.Revision = 8
		tc.change(&d)
		ready, reason, text := d.Ready()
		if ready != (tc.reason == "") || (!ready && reason != tc.reason) || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %t, %s, %s", name, ready, reason, text)
		}
	}
}

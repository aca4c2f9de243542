package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/directget"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const emptyDesired = `{"schema":1,"deployments":{}}`

// file writes a file of the home.
func (h *home) file(name, text string) string {
	h.t.Helper()
	path := filepath.Join(h.temp, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

func TestDesiredStateIsPutReadAndDeleted(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth string) {
		h := newHome(t)
		h.up("--devices", "1", "--auth", auth)
		const device = "vm-device-00"
		if o := h.fleet("desired", "get", device); o.code != 1 || !strings.Contains(o.stderr, "there is no desired state") {
			t.Errorf("get of nothing: %s", o)
		}
		empty := h.file("empty.json", emptyDesired)
		if o := h.fleet("desired", "put", device, "-f", empty, "--if-revision", "3"); o.code != 2 || !strings.Contains(o.stderr, "--if-revision") {
			t.Errorf("put on a condition that does not hold: %s", o)
		}
		if o := h.fleet("desired", "put", device, "-f", empty, "--if-revision", "0"); o.code != 0 || o.stdout != device+"  revision 1\n" {
			t.Errorf("put: %s", o)
		}
		if o := h.fleet("desired", "put", device, "-f", empty, "-o", "json"); o.code != 0 || o.stdout != `{"device_id":"vm-device-00","revision":2}`+"\n" {
			t.Errorf("put as JSON: %s", o)
		}
		if o := h.fleet("desired", "get", device); o.code != 0 || o.stdout != emptyDesired+"\n" || !strings.Contains(o.stderr, "revision 2") {
			t.Errorf("get: %s", o)
		}
		o := h.fleet("desired", "get", device, "-o", "json")
		var line desiredLine
		if err := json.Unmarshal([]byte(o.stdout), &line); err != nil || line.Revision != 2 || string(line.Document) != emptyDesired || line.Stored == nil {
			t.Errorf("get as JSON: %s (%v)", o, err)
		}
		if o := h.fleet("desired", "delete", device, "--if-revision", "1"); o.code != 2 {
			t.Errorf("delete of another revision: %s", o)
		}
		if o := h.fleet("desired", "delete", device); o.code != 0 || o.stdout != device+"  deleted at revision 3\n" {
			t.Errorf("delete: %s", o)
		}
		if o := h.fleet("desired", "get", device); o.code != 1 {
			t.Errorf("get after a delete: %s", o)
		}
	})
}

func TestADocumentIsCheckedBeforeItIsSent(t *testing.T) {
	h := newHome(t) // without a fleet: nothing is sent
	for name, c := range map[string]struct{ text, want string }{
		"not JSON":      {`{`, "EOF"},
		"no schema":     {`{"deployments":{}}`, `want "schema":1`},
		"no list":       {`{"schema":1}`, "deployments: missing"},
		"unknown field": {`{"schema":1,"deployments":{},"colour":1}`, `unknown field "colour"`},
		"unknown type":  {`{"schema":1,"deployments":{"a":{"type":"HelmV1","data":{}}}}`, `deployments.a.type: score type "HelmV1" is not known`},
		"bad port": {`{"schema":1,"deployments":{"hello":{"type":"PodmanV0","data":{"services":[{"name":"a","image":"b","ports":["1:1","x"]}]}}}}`,
			"deployments.hello.services[0].ports[1]: "},
		"one byte too large": {emptyDesired + strings.Repeat(" ", command.MaxDocument+1-len(emptyDesired)), "more than the 524288 bytes"},
	} {
		o := h.fleet("desired", "put", "vm-device-00", "-f", h.file("doc.json", c.text))
		if o.code != 2 || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%s: %s", name, o)
		}
	}
	for _, args := range [][]string{{"put", "vm-device-00"}, {"put", "vm-device-00", "-f", "/none"}, {"put", "a.b", "-f", "/none"}, {"get"}, {"delete", "*"}} {
		if o := h.fleet(append([]string{"desired"}, args...)...); o.code != 2 {
			t.Errorf("%v: %s", args, o)
		}
	}
}

// TestADocumentAtTheLimitArrives: the largest document that there may be is
// stored by the broker and taken up by the device.
func TestADocumentAtTheLimitArrives(t *testing.T) {
	h := newHome(t)
	h.up("--devices", "1")
	frame := `{"schema":1,"deployments":{"big":{"type":"PodmanV0","data":{"services":[{"name":"a","image":"b","env":{"A":""}}]}}}}`
	text := strings.Replace(frame, `"A":""`, `"A":"`+strings.Repeat("x", command.MaxDocument-len(frame))+`"`, 1)
	if len(text) != command.MaxDocument {
		t.Fatal(len(text))
	}
	o := h.fleet("desired", "put", "vm-device-00", "-f", h.file("big.json", text))
	if o.code != 0 {
		t.Fatalf("put: %s", o)
	}
	awaitDevice(t, h, "vm-device-00", "the revision", func(s command.Status) bool {
		return s.DesiredRevision == 1 && s.Deployments["big"].Phase == command.PhaseRuntimeUnavailable
	})
}

// awaitDevice waits for a status that satisfies cond.
func awaitDevice(t *testing.T, h *home, device, what string, cond func(command.Status) bool) {
	t.Helper()
	testwait.For(t, patience, device+": "+what, func() bool {
		o := h.fleet("devices", device, "-o", "json")
		var line deviceLine
		if o.code != 0 || json.Unmarshal([]byte(o.stdout), &line) != nil || line.Status == nil {
			return false
		}
		return cond(*line.Status)
	})
}

func TestTheExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil {
			_, err = command.ParseDesiredState(data)
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestABucketThatIsMissingIsNamed(t *testing.T) {
	for _, cause := range []error{directget.ErrNoStream, jetstream.ErrNoStreamResponse} {
		err := desiredFault("d1", "read", fmt.Errorf("read it: %w", cause))
		if outcomeOf(err) != command.OutcomeFailed || !strings.Contains(messageOf(err), "run fleet provision") {
			t.Errorf("%v: %v", cause, err)
		}
	}
}

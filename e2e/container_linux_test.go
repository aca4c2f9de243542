package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestAContainerOnADeviceOfThisMachine: a document is put, the container answers
// on its port, and is gone when the document is.
func TestAContainerOnADeviceOfThisMachine(t *testing.T) {
	inEachModeInTurn(t, func(t *testing.T, mode AuthMode) {
		Require(t)
		podman := podmantest.Start(t)
		podman.Image(t, "localhost/hello:1")
		s := New(t, Options{AuthMode: mode, AgentTarget: Host{RuntimeSocket: podman.Socket}})
		device := s.DeviceIDs[0]
		nc, err := s.dial(t.Context(), s.adminLogin(access.Data))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		kv, err := js.KeyValue(t.Context(), command.DesiredStateBucket)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(command.PodmanV0{Services: []command.Service{{
			Name: "hello", Image: "localhost/hello:1", Command: []string{"serve", "hello"}, Ports: []string{"8080:80"},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		doc, err := json.Marshal(command.DesiredState{Schema: command.Schema, Deployments: map[string]command.Score{
			"hello": {Type: command.ScorePodmanV0, Data: data},
		}})
		if err != nil {
			t.Fatal(err)
		}
		revision, err := kv.Put(t.Context(), device, doc)
		if err != nil {
			t.Fatal(err)
		}
		testwait.For(t, patience, "the status says that it runs", func() bool {
			d, err := s.Client().Device(t.Context(), device)
			return err == nil && d.Status != nil && d.Status.DesiredRevision == revision &&
				d.Status.Deployments["hello"].Phase == command.PhaseRunning
		})
		testwait.For(t, patience, "the container answers", func() bool {
			text, err := podman.Get("http://127.0.0.1:8080/")
			return err == nil && text == "hello"
		})
		if err := kv.Delete(t.Context(), device); err != nil {
			t.Fatal(err)
		}
		testwait.For(t, patience, "no container", func() bool {
			out, err := podman.Run("ps", "--all", "--quiet")
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(out) == ""
		})
	})
}

package agent

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const runsHello = `{"schema":1,"deployments":{"hello":{"type":"PodmanV0","data":{"services":[{"name":"hello","image":"localhost/hello"}]}}}}`

func TestWithoutTheBrokerTheLastDesiredStateIsGoneOnFrom(t *testing.T) {
	w := newWorld(t)
	m, h, _ := engineOf()
	o := w.options("d1")
	o.RuntimeEnabled, o.Engine = true, h
	a := start(t, o)
	revision := w.put("d1", runsHello)
	w.awaitStatus("d1", "running", func(s command.Status) bool { return s.Deployments["hello"].Phase == command.PhaseRunning })
	a.stop()
	w.srv.Close()
	// The device loses power: nothing of it is left but the disk.
	for _, d := range m.All() {
		if err := m.Remove(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
	}
	next := launch(t, o)
	testwait.For(t, patience, "the container is there again", func() bool {
		all := m.All()
		return len(all) == 1 && all[0].State == "running"
	})
	if got := next.state.desiredRevision(); got != revision {
		t.Errorf("revision %d, want %d", got, revision)
	}
}

// A delete is remembered as well.
func TestADeleteIsGoneOnFrom(t *testing.T) {
	w := newWorld(t)
	m, h, _ := engineOf()
	o := w.options("d1")
	o.RuntimeEnabled, o.Engine = true, h
	a := start(t, o)
	w.put("d1", runsHello)
	testwait.For(t, patience, "running", func() bool { return len(m.All()) == 1 })
	h.Before(func(_ context.Context, c enginefake.Call) error {
		if c.Op == "stop" {
			return context.Canceled // the agent is killed before it removes anything
		}
		return nil
	})
	if err := w.bucket().Delete(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	w.awaitStatus("d1", "removing", func(s command.Status) bool { return s.Deployments["hello"].Phase == command.PhaseRemoving })
	a.stop()
	w.srv.Close()
	h.Before(nil)
	launch(t, o)
	testwait.For(t, patience, "removed", func() bool { return len(m.All()) == 0 })
}

func TestADamagedDesiredStateIsSetAsideAndReported(t *testing.T) {
	w := newWorld(t)
	m, h, _ := engineOf()
	o := w.options("d1")
	o.RuntimeEnabled, o.Engine = true, h
	a := start(t, o)
	revision := w.put("d1", runsHello)
	testwait.For(t, patience, "running", func() bool { return len(m.All()) == 1 })
	a.stop()
	name := filepath.Join(o.StateDir, desiredFile)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, bytes.Replace(whole, []byte("localhost"), []byte("elsewhere"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	running := m.All()[0].ID
	start(t, o)
	s := w.awaitStatus("d1", "damage", func(s command.Status) bool { return condition(s, command.ConditionDamagedFile) })
	i := slices.IndexFunc(s.Conditions, func(c command.Condition) bool { return c.Type == command.ConditionDamagedFile })
	if c := s.Conditions[i]; c.Reason != "DesiredState" || !strings.Contains(c.Message, "checksum") {
		t.Errorf("%+v", c)
	}
	if aside, err := os.ReadFile(name + ".damaged"); err != nil || !bytes.Contains(aside, []byte("elsewhere")) {
		t.Errorf("set aside: %q, %v", aside, err)
	}
	// The broker still knows, and what runs was not touched meanwhile.
	w.awaitStatus("d1", "ready", func(s command.Status) bool {
		return s.DesiredRevision == revision && condition(s, command.ConditionReady)
	})
	if all := m.All(); len(all) != 1 || all[0].ID != running {
		t.Errorf("%+v", all)
	}
	if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("kept anew: %q, %v", now, err)
	}
}

func TestKeptDesiredStateIsReadBackOrRefused(t *testing.T) {
	k := keptDesired{DeviceID: "d1", Revision: 7, Stored: time.Now().UTC(), document: []byte(runsHello)}
	data, err := k.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeKept(data, "d1")
	if err != nil || got.Revision != 7 || !got.Stored.Equal(k.Stored) || string(got.document) != runsHello {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeKept(data, "d2"); err == nil || !strings.Contains(err.Error(), "d1") {
		t.Errorf("another device's: %v", err)
	}
	// No bit can be lost.
	for i := range data {
		torn := bytes.Clone(data)
		torn[i] ^= 0x20
		if got, err := decodeKept(torn, "d1"); err == nil && (got.Revision != 7 || !bytes.Equal(got.document, k.document) || got.Deleted) {
			t.Errorf("byte %d (%q): taken as %+v", i, data[i], got)
		}
		if _, err := decodeKept(data[:i], "d1"); err == nil {
			t.Errorf("the first %d bytes are taken", i)
		}
	}
}

func FuzzDecodeKept(f *testing.F) {
	data, err := keptDesired{DeviceID: "d1", Revision: 7, document: []byte(runsHello)}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := decodeKept(data, "d1")
		if err != nil {
			return
		}
		if _, err := k.decode(); err != nil || k.DeviceID != "d1" {
			t.Errorf("%+v, %v", k, err)
		}
	})
}

// A bucket that was made anew counts from 1: the device must not wait until it
// has counted beyond what it knows.
func TestABucketThatWasMadeAnewIsFollowed(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	for range 5 {
		w.put("d1", `{"schema":1,"deployments":{}}`)
	}
	w.awaitRevision("d1", w.put("d1", hello))
	js, err := jetstream.New(w.data)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), access.KVStream(command.DesiredStateBucket)); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.Provision(t.Context(), w.data, broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	revision := w.put("d1", runsHello)
	if revision != 1 {
		t.Fatalf("revision %d in a new bucket", revision)
	}
	w.awaitRevision("d1", 1)
}

func TestARevisionThatCannotBeKeptIsReported(t *testing.T) {
	w := newWorld(t)
	m, h, _ := engineOf()
	o := w.options("d1")
	o.RuntimeEnabled, o.Engine = true, h
	start(t, o)
	w.awaitStatus("d1", "published", func(command.Status) bool { return true })
	// A directory in its place cannot be replaced by a file.
	if err := os.Mkdir(filepath.Join(o.StateDir, desiredFile), 0o700); err != nil {
		t.Fatal(err)
	}
	w.put("d1", runsHello)
	w.awaitStatus("d1", "not kept", func(s command.Status) bool {
		return condition(s, command.ConditionStateNotKept) && s.Deployments["hello"].Phase == command.PhaseRunning
	})
	if err := os.Remove(filepath.Join(o.StateDir, desiredFile)); err != nil {
		t.Fatal(err)
	}
	w.put("d1", `{"schema":1,"deployments":{}}`)
	w.awaitStatus("d1", "kept again", func(s command.Status) bool {
		return !condition(s, command.ConditionStateNotKept) && len(s.Deployments) == 0
	})
	if len(m.All()) != 0 {
		t.Errorf("%+v", m.All())
	}
}

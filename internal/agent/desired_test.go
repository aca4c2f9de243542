package agent

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/engine/enginefake"
	"github.com/harmony-fleet/fleet/internal/reconcile"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const hello = `{"schema":1,"deployments":{"hello":{"type":"PodmanV0","data":{"services":[{"name":"hello","image":"localhost/hello"}]}},
	"odd":{"type":"HelmV1","data":{}},"broken":{"type":"PodmanV0","data":[]}}}`

func (w *world) bucket() jetstream.KeyValue {
	w.t.Helper()
	js, err := jetstream.New(w.data)
	if err != nil {
		w.t.Fatal(err)
	}
	kv, err := js.KeyValue(w.t.Context(), command.DesiredStateBucket)
	if err != nil {
		w.t.Fatal(err)
	}
	return kv
}

func (w *world) put(device, doc string) uint64 {
	w.t.Helper()
	revision, err := w.bucket().Put(w.t.Context(), device, []byte(doc))
	if err != nil {
		w.t.Fatal(err)
	}
	return revision
}

func (w *world) awaitRevision(device string, revision uint64) command.Status {
	w.t.Helper()
	return w.awaitStatus(device, "desired revision", func(s command.Status) bool { return s.DesiredRevision == revision })
}

func wantPhase(t *testing.T, s command.Status, deployment string, phase command.Phase, kind command.Kind) {
	t.Helper()
	d := s.Deployments[deployment]
	if d.Phase != phase || d.Error == nil || d.Error.Kind != kind || d.Error.Message == "" {
		t.Errorf("%s is %+v (%+v), want %s with %s", deployment, d, d.Error, phase, kind)
	}
}

// TestACutThroughTheClusterIsMadeUpFor: the streams were out of reach while the
// connection stood, so that no reconnect makes the agent look again.
func TestACutThroughTheClusterIsMadeUpFor(t *testing.T) {
	w := newWorld(t)
	a := start(t, w.options("d1"))
	first := w.put("d1", `{"schema":1,"deployments":{}}`)
	w.awaitRevision("d1", first)
	js, err := jetstream.New(w.data)
	if err != nil {
		t.Fatal(err)
	}
	heard := func() uint64 {
		var h command.Heartbeat
		if m := w.last(access.StreamHeartbeat, command.HeartbeatSubject("d1")); m != nil {
			h = document[command.Heartbeat](t, m)
		}
		return h.Seq
	}
	testwait.For(t, patience, "a heartbeat", func() bool { return heard() > 0 })
	if err := js.DeleteStream(t.Context(), access.StreamHeartbeat); err != nil {
		t.Fatal(err)
	}
	if err := a.current.Load().notices[0].Unsubscribe(); err != nil { // no hint arrives
		t.Fatal(err)
	}
	second := w.put("d1", hello)
	before := a.server.served.Load()
	testwait.For(t, patience, "some heartbeats in vain", func() bool { return w.ping("d1").DesiredRevision == first && a.server.served.Load() > before+300 })
	if _, err := broker.Provision(t.Context(), w.data, broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	w.awaitRevision("d1", second)
}

func TestDesiredStateIsReceivedAndReported(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	first := w.put("d1", `{"schema":1,"deployments":{}}`)
	a := start(t, o)
	w.awaitRevision("d1", first) // written before the agent came

	second := w.put("d1", hello)
	s := w.awaitRevision("d1", second)
	wantPhase(t, s, "hello", command.PhaseRuntimeUnavailable, command.KindRuntimeUnavailable)
	wantPhase(t, s, "odd", command.PhaseRejected, command.KindBadRequest)
	wantPhase(t, s, "broken", command.PhaseRejected, command.KindBadRequest)
	if s.Deployments["hello"].Revision != second {
		t.Errorf("%+v", s.Deployments["hello"])
	}
	if log := w.log.String(); !strings.Contains(log, `HelmV1`) || strings.Count(log, "a deployment is rejected") != 2 {
		t.Error("the log lacks what was rejected")
	}
	if r := w.ping("d1").DesiredRevision; r != second {
		t.Errorf("ping says revision %d", r)
	}

	// What cannot be read changes nothing but the revision and a condition.
	third := w.put("d1", `{"schema":2,"deployments":{}}`)
	s = w.awaitRevision("d1", third)
	if len(s.Deployments) != 3 || s.Deployments["hello"].Revision != second || !condition(s, command.ConditionDesiredStateInvalid) {
		t.Errorf("after a document that cannot be read: %+v", s)
	}

	// A delete marker removes all.
	if err := w.bucket().Delete(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	s = w.awaitRevision("d1", third+1)
	if len(s.Deployments) != 0 || condition(s, command.ConditionDesiredStateInvalid) {
		t.Errorf("after a delete: %+v", s)
	}

	// Another device's document is nobody's business here.
	w.put("d2", hello)
	last := w.put("d1", `{"schema":1,"deployments":{}}`)
	w.awaitRevision("d1", last)
	a.stop()
}

func TestNothingWrittenMeansKeepWhatRuns(t *testing.T) {
	w := newWorld(t)
	a := start(t, w.options("d1"))
	w.awaitStatus("d1", "published", func(s command.Status) bool { return true })
	a.watch.apply(reconcile.Desired{Revision: 7, State: command.DesiredState{Schema: 1, Deployments: map[string]command.Score{"kept": {Type: "x"}}}})
	a.watch.task.poke()
	s := w.awaitRevision("d1", 7)
	if len(s.Deployments) != 1 {
		t.Errorf("%+v", s.Deployments)
	}
}

// TestAnOlderRevisionIsIgnored: what a read brings counts only if it is newer.
func TestAnOlderRevisionIsIgnored(t *testing.T) {
	w := newWorld(t)
	a := start(t, w.options("d1"))
	first := w.put("d1", hello)
	w.awaitRevision("d1", first)
	a.watch.mu.Lock()
	a.watch.seen.Revision, a.watch.seen.Stored = first+10, time.Now().Add(time.Hour)
	a.watch.mu.Unlock()
	w.put("d1", `{"schema":1,"deployments":{}}`)
	a.watch.announced()
	newer, err := a.watch.readOnce(t.Context(), a.current.Load())
	if err != nil || newer {
		t.Errorf("newer %v, err %v", newer, err)
	}
	if s, _ := w.status("d1"); s.DesiredRevision != first || len(s.Deployments) != 3 {
		t.Errorf("%+v", s)
	}
}

func TestDesiredStateWrittenDuringAnOutageIsFound(t *testing.T) {
	w := newWorld(t)
	start(t, w.options("d1"))
	w.awaitRevision("d1", w.put("d1", hello))
	w.stopServer()
	w.startServer()
	// Whether the agent is back before the write or after it, it ends up with it.
	w.awaitData()
	w.awaitRevision("d1", w.put("d1", `{"schema":1,"deployments":{}}`))
}

// engineOf is an engine in memory that has the image localhost/hello, and can be
// away.
func engineOf() (*enginefake.Memory, *enginefake.Hooked, *atomic.Bool) {
	m := &enginefake.Memory{}
	m.AddImage("localhost/hello", "hello1")
	h := &enginefake.Hooked{Engine: m}
	away := &atomic.Bool{}
	h.Before(func(context.Context, enginefake.Call) error {
		if away.Load() {
			return fmt.Errorf("connection refused: %w", engine.ErrUnavailable)
		}
		return nil
	})
	return m, h, away
}

func TestAnEngineThatIsAwayIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	m, h, away := engineOf()
	away.Store(true)
	o := w.options("d1")
	o.RuntimeEnabled, o.Engine = true, h
	start(t, o)
	revision := w.put("d1", hello)
	s := w.awaitStatus("d1", "revision taken up", func(s command.Status) bool { return s.Deployments["hello"].Revision == revision })
	if s.Runtime != command.RuntimeUnavailable || condition(s, command.ConditionReady) {
		t.Errorf("runtime %s, %+v", s.Runtime, s.Conditions)
	}
	wantPhase(t, s, "hello", command.PhaseRuntimeUnavailable, command.KindRuntimeUnavailable)
	if r := w.ping("d1").Runtime; r != command.RuntimeUnavailable {
		t.Errorf("ping says %s", r)
	}

	away.Store(false)
	s = w.awaitStatus("d1", "running", func(s command.Status) bool {
		return s.Runtime == command.RuntimeReady && s.Deployments["hello"].Phase == command.PhaseRunning
	})
	wantPhase(t, s, "odd", command.PhaseRejected, command.KindBadRequest)
	if len(m.All()) != 1 {
		t.Errorf("%+v", m.All())
	}

	away.Store(true)
	w.awaitStatus("d1", "engine gone", func(s command.Status) bool { return s.Runtime == command.RuntimeUnavailable })
}

func TestReadyTellsWhetherAllIsAsDesired(t *testing.T) {
	w := newWorld(t)
	m, h, _ := engineOf()
	o := w.options("d1")
	o.RuntimeEnabled, o.Engine = true, h
	start(t, o)
	const good = `{"schema":1,"deployments":{"hello":{"type":"PodmanV0","data":{"services":[{"name":"hello","image":"localhost/hello"}]}}}}`
	first := w.put("d1", good)
	w.awaitStatus("d1", "ready", func(s command.Status) bool {
		return s.DesiredRevision == first && condition(s, command.ConditionReady)
	})
	w.put("d1", hello)
	w.awaitStatus("d1", "not ready", func(s command.Status) bool {
		for _, c := range s.Conditions {
			if c.Type == command.ConditionReady && !c.Status && c.Message == "broken is rejected, odd is rejected" {
				return true
			}
		}
		return false
	})
	if err := w.bucket().Delete(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	w.awaitStatus("d1", "ready without anything", func(s command.Status) bool {
		return len(s.Deployments) == 0 && condition(s, command.ConditionReady)
	})
	if len(m.All()) != 0 {
		t.Errorf("%+v", m.All())
	}
}

func TestNoEngineAtTheSocketIsNoFailure(t *testing.T) {
	w := newWorld(t)
	o := w.options("d1")
	o.RuntimeEnabled, o.RuntimeSocket = true, "unix://"+t.TempDir()+"/none.sock"
	start(t, o)
	if r := w.ping("d1").Runtime; r != command.RuntimeUnavailable {
		t.Errorf("runtime %s", r)
	}
}

func TestAHugeStatusIsCutAndSaysSo(t *testing.T) {
	s := &command.Status{Schema: 1, Deployments: map[string]command.DeploymentStatus{}}
	for i := range 8000 {
		s.Deployments[strings.Repeat("x", 40)+time.Duration(i).String()] = command.DeploymentStatus{Phase: command.PhaseRunning, Revision: 1}
	}
	n := len(s.Deployments)
	data, err := encodeStatus(s)
	if err != nil || len(data) > command.MaxDocument {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	if kept := len(s.Deployments); kept == n || kept < n/2 || !condition(*s, command.ConditionStatusTruncated) {
		t.Errorf("%d of %d kept", kept, n)
	}
}

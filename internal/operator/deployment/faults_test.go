package deployment

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
)

// airport is a fleet whose devices pull for ever until they are let land.
type airport struct {
	mu     sync.Mutex
	flying map[string]bool
	landed map[string]bool
	most   int
}

func (a *airport) react(device, name string, s command.Score) command.DeploymentStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.landed[device] {
		delete(a.flying, device)
		return fleettest.React(device, name, s)
	}
	a.flying[device] = true
	a.most = max(a.most, len(a.flying))
	return command.DeploymentStatus{Phase: command.PhasePulling}
}

// land lets all land that fly, and tells how many those were.
func (a *airport) land(w *world) int {
	a.mu.Lock()
	n := len(a.flying)
	maps.Copy(a.landed, a.flying)
	a.mu.Unlock()
	w.fleet.Report(nil)
	return n
}

func TestAnOperatorThatIsKilledGoesOnWhereItWas(t *testing.T) {
	a := &airport{flying: map[string]bool{}, landed: map[string]bool{}}
	w := newWorld(t, fleettest.Options{Devices: 8, React: a.react})
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.BatchSize = number(2) })
	for n := int32(2); n <= 8; n += 2 {
		s := w.status("web", fmt.Sprintf("%d updated", n), func(s v1alpha1.DeploymentStatus) bool { return s.Updated == n && s.Ready == n-2 })
		if s.Phase != v1alpha1.RolloutProgressing || s.Revision != 1 || s.Failed != 0 {
			t.Fatalf("%+v", s)
		}
		w.stop()
		landed := a.land(w) // while nobody looks
		w.operator()
		if landed != 2 {
			t.Errorf("%d were in flight", landed)
		}
	}
	w.complete("web", 8)
	if a.most != 2 {
		t.Errorf("%d devices were in flight at one time", a.most)
	}
	// Many kills at any moment.
	for i := range 6 {
		w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score = score(fmt.Sprintf("example.org/good:%d", i+2)) })
		w.wait("it begins", func() bool {
			state, _, _ := w.document(w.fleet.IDs()[0])
			return i%2 == 0 || string(state.Deployments["web"].Data) == string(podman(t, fmt.Sprintf("example.org/good:%d", i+2)).Data)
		})
		w.stop()
		w.operator()
	}
	s := w.complete("web", 8)
	if s.Failed != 0 {
		t.Errorf("%+v", s)
	}
	for _, id := range w.fleet.IDs() {
		if state, _, _ := w.document(id); string(state.Deployments["web"].Data) != string(podman(t, "example.org/good:7").Data) {
			t.Errorf("%s has %s", id, state.Deployments["web"].Data)
		}
	}
}

func TestWhileTheBrokerIsAwayNothingFails(t *testing.T) {
	a := &airport{flying: map[string]bool{}, landed: map[string]bool{}}
	w := newWorld(t, fleettest.Options{Devices: 4, React: a.react})
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) {
		d.Spec.Rollout.BatchSize, d.Spec.Rollout.ProgressDeadlineSeconds = number(2), ptr(int32(3))
	})
	w.status("web", "a batch is in flight", func(s v1alpha1.DeploymentStatus) bool { return s.Updated == 2 })
	w.broker.Stop()
	w.status("web", "the broker is away", func(s v1alpha1.DeploymentStatus) bool {
		c := condition(w.get("web"), v1alpha1.DeploymentProgressing)
		return c.Status == metav1.ConditionUnknown && c.Reason == v1alpha1.ReasonBrokerAway
	})
	begin := time.Now()
	w.wait("the deadline of the devices to pass", func() bool { return time.Since(begin) > 4*time.Second })
	if s := w.get("web").Status; s.Failed != 0 || s.Updated != 2 || s.Phase != v1alpha1.RolloutProgressing {
		t.Errorf("%+v", s)
	}
	w.broker.Start(t)
	w.status("web", "the broker is back", func(s v1alpha1.DeploymentStatus) bool {
		return condition(w.get("web"), v1alpha1.DeploymentProgressing).Reason == "RolloutProgressing"
	})
	for a.land(w) > 0 || w.get("web").Status.Ready < 4 {
		w.status("web", "the next", func(s v1alpha1.DeploymentStatus) bool { return s.Ready == s.Updated || s.Updated > s.Ready })
	}
	s := w.complete("web", 4)
	if s.Failed != 0 || a.most != 2 {
		t.Errorf("%+v; %d in flight", s, a.most)
	}
}

func TestTheAPIServerRestarts(t *testing.T) {
	kube := kubetest.Start(t)
	if err := kube.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := &airport{flying: map[string]bool{}, landed: map[string]bool{}}
	w := newWorldOn(t, kube, fleettest.Options{Devices: 4, React: a.react})
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.BatchSize = number(2) })
	w.status("web", "a batch is in flight", func(s v1alpha1.DeploymentStatus) bool { return s.Updated == 2 })
	kube.StopAPI()
	// What is declared is known: the rollout goes on, and cannot tell.
	a.land(w)
	w.with("web", w.fleet.IDs()...)
	a.land(w)
	kube.StartAPI(t)
	w.complete("web", 4)
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score = score("example.org/good:2") })
	w.status("web", "revision 2", func(s v1alpha1.DeploymentStatus) bool {
		return s.Revision == 2 && s.Phase == v1alpha1.RolloutComplete && s.Ready == 4
	})
}

func TestOthersWriteAtTheSameTime(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 6})
	w.operator()
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	c := w.kube.Client(t)
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.BatchSize = number(2) })
	others.Go(func() { // to the object
		for i := 0; ctx.Err() == nil; i++ {
			d := &v1alpha1.Deployment{}
			d.Namespace, d.Name = w.ns, "web"
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"n":"%d"}}}`, i)
			if err := c.Patch(ctx, d, rawMerge(patch)); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	m, byHand := w.mirror, map[string]uint64{}
	others.Go(func() { // to the documents
		for i := 0; ctx.Err() == nil; i++ {
			id := w.fleet.IDs()[i%6]
			d, _ := m.Device(id)
			state := command.DesiredState{Deployments: map[string]command.Score{}}
			maps.Copy(state.Deployments, d.Document.State.Deployments)
			data, _ := json.Marshal(map[string]any{"services": []map[string]any{{"name": "tool", "image": fmt.Sprintf("tool:%d", i)}}})
			state.Deployments["tool"] = command.Score{Type: command.ScorePodmanV0, Data: data}
			if revision, err := m.Put(ctx, id, d.Document.Revision, state, d.Document.Owners); err == nil {
				byHand[id] = revision
			}
		}
	})
	w.status("web", "the first revision", func(s v1alpha1.DeploymentStatus) bool { return s.Revision == 1 && s.Updated == 6 })
	for i := range 5 {
		w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score = score(fmt.Sprintf("example.org/good:%d", i+2)) })
		w.status("web", "everywhere", func(s v1alpha1.DeploymentStatus) bool { return s.Revision == int64(i+2) && s.Updated == 6 })
	}
	cancel()
	others.Wait()
	w.complete("web", 6)
	if len(byHand) != 6 {
		t.Errorf("the other writer got through to %d devices", len(byHand))
	}
	for _, id := range w.fleet.IDs() {
		state, owners, _ := w.document(id)
		if len(state.Deployments) != 2 || owners["web"] == "" || owners["tool"] != "" {
			t.Errorf("%s: %v, %v", id, state, owners)
		}
	}
}

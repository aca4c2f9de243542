package deployment

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
)

func TestWhatWasPutByHandIsLeftAloneExceptTheOwnName(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 1})
	id := w.fleet.IDs()[0]
	w.put(id, map[string]command.Score{"web": podman(t, "by-hand:1"), "tool": podman(t, "tool:1"), "odd": {Type: "Odd", Data: json.RawMessage(`{"a":[1.0,"<&>"]}`)}})
	before, _, _ := w.document(id)
	w.operator()
	w.create("web", nil)
	w.complete("web", 1)
	state, owners, _ := w.document(id)
	if len(state.Deployments) != 3 || len(owners) != 1 || owners["web"] != w.ns+"/web" {
		t.Errorf("%v %v", state, owners)
	}
	if string(state.Deployments["web"].Data) != string(podman(t, "example.org/good:1").Data) {
		t.Errorf("not taken over: %s", state.Deployments["web"].Data)
	}
	for _, name := range []string{"tool", "odd"} {
		want, _ := canonical(before.Deployments[name].Data)
		if got, _ := canonical(state.Deployments[name].Data); string(got) != string(want) {
			t.Errorf("%s: %s, was %s", name, got, want)
		}
	}
	// By hand again: what is declared comes back.
	w.put(id, map[string]command.Score{"web": podman(t, "by-hand:2"), "tool": podman(t, "tool:2")})
	w.wait("declared wins", func() bool {
		state, owners, _ := w.document(id)
		return len(state.Deployments) == 2 && owners["web"] != "" && strings.Contains(string(state.Deployments["web"].Data), "good:1")
	})
	w.complete("web", 1)
	if err := w.c.Delete(t.Context(), w.get("web")); err != nil {
		t.Fatal(err)
	}
	w.gone("web")
	if state, owners, _ := w.document(id); len(state.Deployments) != 1 || len(owners) != 0 || state.Deployments["tool"].Type == "" {
		t.Errorf("%v %v", state, owners)
	}
}

// gone waits until the Deployment is no more.
func (w *world) gone(name string) {
	w.t.Helper()
	w.wait(name+" is gone", func() bool {
		return apierrors.IsNotFound(w.c.Get(w.t.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, &v1alpha1.Deployment{}))
	})
}

func TestAHostPortIsOnesAlone(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 2})
	ids := w.fleet.IDs()
	w.operator()
	// b comes first and a would win by its name on the device: nothing of b may break.
	w.create("b", func(d *v1alpha1.Deployment) {
		d.Spec.Selector = v1alpha1.DeviceSelector{Names: ids[:1]}
		d.Spec.Score = score("good:1", "8080:80")
	})
	w.complete("b", 1)
	w.create("a", func(d *v1alpha1.Deployment) { d.Spec.Score = score("good:1", "8080:80") })
	s := w.status("a", "a conflict", func(s v1alpha1.DeploymentStatus) bool { return s.Conflicts == 1 && s.Ready == 1 })
	if s.Phase != v1alpha1.RolloutProgressing || len(s.Failures) != 1 || s.Failures[0].Device != ids[0] || s.Failures[0].Phase != "conflict" {
		t.Errorf("%+v", s)
	}
	contains(t, s.Failures[0].Message, "8080", "b")
	for name, want := range map[string]metav1.ConditionStatus{v1alpha1.DeploymentConflict: metav1.ConditionTrue, v1alpha1.DeploymentProgressing: metav1.ConditionFalse, v1alpha1.DeploymentAvailable: metav1.ConditionFalse} {
		if c := condition(w.get("a"), name); c.Status != want {
			t.Errorf("%s: %+v", name, c)
		}
	}
	contains(t, w.event("a", "Conflict"), "8080")
	w.with("a", ids[1])
	// It gives way, and the other goes on by itself.
	if err := w.c.Delete(t.Context(), w.get("b")); err != nil {
		t.Fatal(err)
	}
	s = w.complete("a", 2)
	if s.Conflicts != 0 {
		t.Errorf("%+v", s)
	}
}

func TestTwoDeploymentsOfOneName(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 1})
	id := w.fleet.IDs()[0]
	w.operator()
	w.create("web", nil)
	w.complete("web", 1)
	// The document says that it is of another namespace, which is not watched: that one
	// cannot be asked, and what is declared here wins. One that is watched and is gone
	// loses as well.
	for _, owner := range []string{"elsewhere/web", w.ns + "/gone"} {
		state, _, revision := w.document(id)
		name, _, _ := strings.Cut(owner[strings.Index(owner, "/")+1:], "/")
		state.Deployments[name] = podman(t, "other:1")
		owners := map[string]string{name: owner}
		if name != "web" {
			owners["web"] = w.ns + "/web"
		}
		if _, err := w.mirror.Put(t.Context(), id, revision, state, owners); err != nil {
			t.Fatal(err)
		}
		w.wait("the document is as declared after "+owner, func() bool {
			state, owners, _ := w.document(id)
			_, gone := state.Deployments["gone"]
			return owners["web"] == w.ns+"/web" && len(owners) == 1 && !gone && strings.Contains(string(state.Deployments["web"].Data), "good:1")
		})
	}
}

func TestSelectionFollowsLabelsAndSurvivesADeviceThatIsDeleted(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 3, Prefix: "sel-" + strings.ToLower(t.Name()[:3]) + "-"})
	ids := w.fleet.IDs()
	w.operator()
	for i, id := range ids {
		w.device(id, map[string]string{"site": []string{"lab", "lab", "plant"}[i]}, false)
	}
	w.create("web", func(d *v1alpha1.Deployment) {
		d.Spec.Selector = v1alpha1.DeviceSelector{MatchLabels: map[string]string{"site": "lab"}}
	})
	w.complete("web", 2)
	w.with("web", ids[0], ids[1])

	// The broker has the labels, too: without its object the device stays selected.
	if _, err := w.mirror.PutLabels(t.Context(), ids[0], 0, map[string]string{"site": "lab"}); err != nil {
		t.Fatal(err)
	}
	d := &v1alpha1.Device{ObjectMeta: metav1.ObjectMeta{Name: ids[0]}}
	if err := w.c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	_, _, before := w.document(ids[0])
	w.relabel(ids[2], func(d *v1alpha1.Device) { d.Spec.Labels["site"] = "lab" })
	w.complete("web", 3)
	if _, _, now := w.document(ids[0]); now != before {
		t.Error("the device without an object was written to")
	}

	// One that is not selected any more loses it at once, whatever the rollout does.
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.Paused = true })
	w.phase("web", v1alpha1.RolloutPaused)
	w.relabel(ids[1], func(d *v1alpha1.Device) { d.Spec.Labels["site"] = "attic" })
	w.with("web", ids[0], ids[2])
	w.status("web", "two are matched", func(s v1alpha1.DeploymentStatus) bool { return s.Matched == 2 && s.Ready == 2 })

	// An offline one too, which takes it up when it returns.
	w.leave(ids[2])
	w.relabel(ids[2], func(d *v1alpha1.Device) { d.Spec.Labels = nil })
	w.with("web", ids[0])
	if _, runs := w.fleet.Status(ids[2], "web"); !runs {
		t.Error("it is offline and cannot know")
	}
	w.fleet.Join(ids[2])
	w.wait("it is gone there", func() bool { _, runs := w.fleet.Status(ids[2], "web"); return !runs })
}

func (w *world) relabel(id string, change func(*v1alpha1.Device)) {
	w.t.Helper()
	w.wait("an update of "+id, func() bool {
		d := &v1alpha1.Device{}
		if err := w.c.Get(w.t.Context(), client.ObjectKey{Name: id}, d); err != nil {
			w.t.Fatal(err)
		}
		change(d)
		return w.c.Update(w.t.Context(), d) == nil
	})
}

func TestAPausedDeviceIsNotTouched(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 2, Prefix: "paused-dev-"})
	ids := w.fleet.IDs()
	w.operator()
	w.device(ids[0], nil, true)
	w.wait("the pause is known", func() bool { return w.pausedKnown(ids[0]) })
	w.create("web", nil)
	s := w.complete("web", 1)
	if s.Matched != 2 || s.Paused != 1 || s.Updated != 1 {
		t.Errorf("%+v", s)
	}
	w.with("web", ids[1])
	w.relabel(ids[0], func(d *v1alpha1.Device) { d.Spec.Paused = false })
	w.complete("web", 2)
	w.relabel(ids[0], func(d *v1alpha1.Device) { d.Spec.Paused = true })
	w.status("web", "one is paused", func(s v1alpha1.DeploymentStatus) bool { return s.Paused == 1 })
	if err := w.c.Delete(t.Context(), w.get("web")); err != nil {
		t.Fatal(err)
	}
	contains(t, w.event("web", "RemovalWaits"), "spec.paused", ids[0])
	w.with("web", ids[0])
	w.relabel(ids[0], func(d *v1alpha1.Device) { d.Spec.Paused = false })
	w.gone("web")
	w.with("web")
}

// pausedKnown is for a pause that has to be known before something else happens.
func (w *world) pausedKnown(id string) bool {
	s, ok := w.controller.index.spec(id)
	return ok && s.paused
}

func TestDeletionWaitsForOfflineDevicesUnlessToldNotTo(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 3})
	ids := w.fleet.IDs()
	w.operator()
	w.create("web", nil)
	w.complete("web", 3)
	w.leave(ids[1])
	if err := w.c.Delete(t.Context(), w.get("web")); err != nil {
		t.Fatal(err)
	}
	s := w.status("web", "waits for one", func(s v1alpha1.DeploymentStatus) bool {
		return s.Phase == v1alpha1.RolloutRemoving && s.Matched == 1 && s.Offline == 1
	})
	_ = s
	if c := condition(w.get("web"), v1alpha1.DeploymentProgressing); !strings.Contains(c.Message, ids[1]) || !strings.Contains(c.Message, "spec.deletion Online") {
		t.Errorf("%+v", c)
	}
	w.with("web")
	// Another operator waits as well.
	w.stop()
	w.operator()
	w.wait("the other operator knows", func() bool { return w.mirror.NotCurrent() == nil })
	w.fleet.Join(ids[1])
	w.gone("web")

	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Deletion = v1alpha1.WaitForOnline })
	w.complete("web", 3)
	w.leave(ids[1])
	if err := w.c.Delete(t.Context(), w.get("web")); err != nil {
		t.Fatal(err)
	}
	w.gone("web")
	w.with("web")
	if _, runs := w.fleet.Status(ids[1], "web"); !runs {
		t.Error("it is offline and cannot know")
	}
	w.fleet.Join(ids[1])
	w.wait("it is gone there", func() bool { _, runs := w.fleet.Status(ids[1], "web"); return !runs })
}

func TestTheKeysOfADeploymentThatLostItsFinalizerAreRemoved(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 2})
	w.operator()
	w.create("web", nil)
	w.complete("web", 2)
	w.stop()
	d := w.get("web")
	controllerutil.RemoveFinalizer(d, v1alpha1.Finalizer)
	if err := w.c.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := w.c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	w.gone("web")
	w.operator()
	w.with("web")
}

func TestNothingIsWrittenAtRest(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 5, Heartbeat: 100 * time.Millisecond})
	w.operator()
	w.create("web", nil)
	w.complete("web", 5)
	quiet := func() (string, uint64) {
		_, _, revision := w.document(w.fleet.IDs()[0])
		return w.get("web").ResourceVersion, revision
	}
	version, revision := quiet()
	var since time.Time
	w.wait("two seconds without a write", func() bool {
		if v, r := quiet(); v != version || r != revision || since.IsZero() {
			version, revision, since = v, r, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
	passes := w.controller.passes.Load()
	w.fleet.Report(nil) // the same again: no more than a look
	w.fleet.Join(w.fleet.IDs()...)
	before := version
	since = time.Now()
	w.wait("another second", func() bool { return time.Since(since) > time.Second })
	if v, r := quiet(); v != before || r != revision {
		t.Errorf("written: %s, was %s; %d, was %d", v, before, r, revision)
	}
	if n := w.controller.passes.Load() - passes; n > 5 {
		t.Errorf("%d passes over what has not changed", n)
	}
}

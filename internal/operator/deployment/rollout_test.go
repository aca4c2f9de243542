package deployment

import (
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
)

func TestARolloutGoesThroughInBatches(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 7})
	var mu sync.Mutex
	flying, most := map[string]bool{}, 0
	w.fleet.Report(func(device, name string, s command.Score) command.DeploymentStatus {
		mu.Lock()
		defer mu.Unlock()
		flying[device] = true
		most = max(most, len(flying))
		return command.DeploymentStatus{Phase: command.PhasePulling}
	})
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.BatchSize = number(3) })
	s := w.status("web", "a batch is in flight", func(s v1alpha1.DeploymentStatus) bool { return s.Updated == 3 })
	if s.Phase != v1alpha1.RolloutProgressing || s.Matched != 7 || s.Ready != 0 {
		t.Errorf("%+v", s)
	}
	w.with("web", w.fleet.IDs()[:3]...)
	// They land, and so do the others.
	w.fleet.Report(func(device, name string, s command.Score) command.DeploymentStatus {
		mu.Lock()
		defer mu.Unlock()
		delete(flying, device)
		return fleettest.React(device, name, s)
	})
	s = w.complete("web", 7)
	if s.Updated != 7 || s.Revision != 1 || s.RolloutStartedAt == nil || s.Failed+s.Offline+s.Rejected != 0 {
		t.Errorf("%+v", s)
	}
	if mu.Lock(); most != 3 {
		t.Errorf("%d devices were in flight", most)
	}
	mu.Unlock()
	for _, name := range []string{v1alpha1.DeploymentAvailable, v1alpha1.DeploymentProgressing, v1alpha1.DeploymentValid} {
		if c := condition(w.get("web"), name); c == nil || c.Status != metav1.ConditionTrue {
			t.Errorf("%s: %+v", name, c)
		}
	}
	state, owners, _ := w.document(w.fleet.IDs()[6])
	if owners["web"] != w.ns+"/web" || string(state.Deployments["web"].Data) != string(podman(t, "example.org/good:1").Data) {
		t.Errorf("%v %v", state, owners)
	}
	w.event("web", "RolloutStarted")
	contains(t, w.event("web", "RolloutComplete"), "revision 1", "7 of 7 devices updated", "7 ready")
}

func TestABadScoreStopsAndUndoPutsTheOneBeforeBack(t *testing.T) {
	for _, c := range []struct{ name, image, says string }{
		{"failed", "example.org/failed:1", "failed: main: ended with exit code 1"},
		{"timeout", "example.org/backoff:1", "timeout: does not run after 1s: backoff: main: no such image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, fleettest.Options{Devices: 4})
			w.operator()
			w.create("web", func(d *v1alpha1.Deployment) {
				d.Spec.Rollout.BatchSize, d.Spec.Rollout.ProgressDeadlineSeconds = number(1), ptr(int32(1))
			})
			w.complete("web", 4)
			w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score = score(c.image) })
			s := w.phase("web", v1alpha1.RolloutStopped)
			if s.Revision != 2 || s.Updated != 1 || s.Failed != 1 || len(s.Failures) != 1 || s.Failures[0].Device != w.fleet.IDs()[0] {
				t.Errorf("%+v", s)
			}
			if progressing := condition(w.get("web"), v1alpha1.DeploymentProgressing); progressing.Status != metav1.ConditionFalse || progressing.Reason != "RolloutStopped" {
				t.Errorf("%+v", progressing)
			}
			contains(t, w.event("web", "RolloutStopped"), "revision 2", "1 of the 1 devices", c.says)

			w.change("web", func(d *v1alpha1.Deployment) { d.Spec.RollbackTo = ptr(int64(0)) })
			s = w.complete("web", 4)
			d := w.get("web")
			if s.Revision != 3 || d.Spec.RollbackTo != nil || d.Spec.Score.Data.Services[0].Image != "example.org/good:1" {
				t.Errorf("revision %d, rollbackTo %v, %+v", s.Revision, d.Spec.RollbackTo, d.Spec.Score)
			}
			contains(t, w.event("web", "RolledBack"), "revision 1")

			// There and back by number.
			w.change("web", func(d *v1alpha1.Deployment) { d.Spec.RollbackTo = ptr(int64(2)) })
			w.status("web", "the bad one again", func(s v1alpha1.DeploymentStatus) bool {
				return s.Phase == v1alpha1.RolloutStopped && s.Revision == 4
			})
			w.change("web", func(d *v1alpha1.Deployment) { d.Spec.RollbackTo = ptr(int64(99)) })
			contains(t, w.event("web", "RollbackFailed"), "no revision 99; there are 4, 3")
			if d := w.get("web"); d.Spec.RollbackTo != nil {
				t.Error("rollbackTo is not cleared")
			}
		})
	}
}

func TestAStoppedRolloutWritesToNobodyUntilItIsResumed(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 3})
	ids := w.fleet.IDs()
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) {
		d.Spec.Rollout.BatchSize, d.Spec.Score = number(1), score("example.org/failed:1")
	})
	w.phase("web", v1alpha1.RolloutStopped)
	w.leave(ids[2])
	w.status("web", "one is offline", func(s v1alpha1.DeploymentStatus) bool { return s.Offline == 1 })
	w.fleet.Join(ids[2])
	w.status("web", "none is offline", func(s v1alpha1.DeploymentStatus) bool { return s.Offline == 0 })
	w.with("web", ids[0])

	// A restart changes nothing about it.
	w.stop()
	w.operator()
	w.leave(ids[2])
	w.fleet.Join(ids[2])
	w.phase("web", v1alpha1.RolloutStopped)
	w.with("web", ids[0])

	// Whatever was wrong is mended: what failed is written to and tried anew.
	_, _, before := w.document(ids[0])
	w.fleet.Report(func(string, string, command.Score) command.DeploymentStatus {
		return command.DeploymentStatus{Phase: command.PhaseFailed}
	})
	resumed := metav1.Now().Rfc3339Copy()
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.ResumedAt = &resumed })
	w.wait("tried anew", func() bool { _, _, now := w.document(ids[0]); return now > before })
	w.phase("web", v1alpha1.RolloutStopped)
	w.with("web", ids[0])

	w.fleet.Report(func(string, string, command.Score) command.DeploymentStatus {
		return command.DeploymentStatus{Phase: command.PhaseRunning}
	})
	// The API has whole seconds: two resumptions within one would be the same.
	w.wait("another second", func() bool { return time.Now().After(resumed.Add(time.Second)) })
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.ResumedAt = ptr(metav1.Now()) })
	w.complete("web", 3)
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 3})
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.Paused = true })
	s := w.phase("web", v1alpha1.RolloutPaused)
	if s.Matched != 3 || s.Updated != 0 || s.Revision != 1 {
		t.Errorf("%+v", s)
	}
	w.with("web")
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.Paused = false })
	w.complete("web", 3)
	w.event("web", "RolloutResumed")
}

func TestOfflineDevicesAreNotWaitedForAndCatchUp(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 3})
	ids := w.fleet.IDs()
	w.operator()
	w.wait("devices", func() bool { return w.mirror.Len() == 3 })
	w.leave(ids[1])
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.Rollout.BatchSize = number(1) })
	s := w.complete("web", 2)
	if s.Matched != 3 || s.Updated != 2 || s.Offline != 1 {
		t.Errorf("%+v", s)
	}
	w.with("web", ids[0], ids[2])
	w.fleet.Join(ids[1])
	w.complete("web", 3)
}

func TestARejectedTypeIsCountedAndAnInvalidScoreGoesNowhere(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 2})
	w.operator()
	w.create("web", nil)
	w.complete("web", 2)
	_, _, before := w.document(w.fleet.IDs()[0])
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score = score("example.org/good:2", "70000:80") })
	s := w.phase("web", v1alpha1.RolloutInvalid)
	if s.Matched != 2 || s.Updated != 0 || s.Revision != 1 {
		t.Errorf("%+v", s)
	}
	if c := condition(w.get("web"), v1alpha1.DeploymentValid); c.Status != metav1.ConditionFalse {
		t.Errorf("%+v", c)
	} else {
		contains(t, c.Message, "spec.score: ", "services[0].ports[0]", "70000")
	}
	contains(t, w.event("web", "InvalidScore"), "70000")
	if _, _, now := w.document(w.fleet.IDs()[0]); now != before {
		t.Error("something was written")
	}

	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score.Type = "OfTheFuture" })
	s = w.phase("web", v1alpha1.RolloutStopped)
	if s.Rejected != 1 || s.Failed != 1 || s.Revision != 2 {
		t.Errorf("%+v", s)
	}
	contains(t, s.Failures[0].Message, "OfTheFuture")
	w.change("web", func(d *v1alpha1.Deployment) { d.Spec.RollbackTo = ptr(int64(0)) })
	w.complete("web", 2)
}

func TestRevisionsAreKeptUpToTheLimit(t *testing.T) {
	w := newWorld(t, fleettest.Options{Devices: 1})
	w.operator()
	w.create("web", func(d *v1alpha1.Deployment) { d.Spec.RevisionHistoryLimit = ptr(int32(2)) })
	for _, image := range []string{"a:2", "a:3", "a:4", "a:5"} {
		w.complete("web", 1)
		w.change("web", func(d *v1alpha1.Deployment) { d.Spec.Score = score(image) })
	}
	s := w.complete("web", 1)
	var list appsv1.ControllerRevisionList
	if err := w.c.List(t.Context(), &list, client.InNamespace(w.ns)); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 3 || s.Revision != 5 {
		t.Errorf("%d revisions, current %d", len(list.Items), s.Revision)
	}
	for _, cr := range list.Items {
		if cr.Revision < 3 || !metav1.IsControlledBy(&cr, w.get("web")) {
			t.Errorf("revision %d, %+v", cr.Revision, cr.OwnerReferences)
		}
	}
}

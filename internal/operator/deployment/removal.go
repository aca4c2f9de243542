package deployment

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/operator/rollout"
)

// maxNamed is how many devices a message names.
const maxNamed = 5

// gone removes what a Deployment left that is not there any more: it was deleted
// while it was not waited for a device, or somebody took its finalizer away.
func (r *reconciler) gone(ctx context.Context, key types.NamespacedName, st *state) (ctrl.Result, error) {
	var ids []string
	for d := range r.mirror.All() {
		spec, _ := r.index.spec(d.ID)
		if owner, ok := ownerKey(key.Name, d.Document.Owners[key.Name]); ok && owner == key && !spec.paused {
			ids = append(ids, d.ID)
		}
	}
	if len(ids) > 0 {
		r.log.Info("a Deployment is gone, and its key is removed", "deployment", key, "devices", len(ids))
		if r.take(ctx, key, st, ids) {
			return ctrl.Result{RequeueAfter: writeAgain}, nil
		}
	}
	r.forget(key)
	return ctrl.Result{}, nil
}

// waiting is what keeps a deletion.
type waiting struct {
	counts          rollout.Counts
	online, offline []string // devices that still run it
	paused          []string // devices whose desired state may not be touched
	keys            []string // devices to take the key from
}

// remove takes the key of a Deployment that is being deleted from all devices, and
// lets it go once they say that it is gone.
func (r *reconciler) remove(ctx context.Context, d *v1alpha1.Deployment, st *state) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(d, v1alpha1.Finalizer) {
		return ctrl.Result{}, nil
	}
	key := client.ObjectKeyFromObject(d)
	st.read(d)
	again := false
	if w := r.waiting(key, st); len(w.keys) > 0 {
		again = r.take(ctx, key, st, w.keys)
	}
	w := r.waiting(key, st)
	offline := w.offline
	if d.Spec.Deletion == v1alpha1.WaitForOnline {
		offline = nil
	}
	if len(w.keys)+len(w.online)+len(w.paused)+len(offline) == 0 {
		d = d.DeepCopy()
		controllerutil.RemoveFinalizer(d, v1alpha1.Finalizer)
		if err := r.client.Update(ctx, d); err != nil {
			return ctrl.Result{}, err
		}
		r.log.Info("a Deployment is removed", "deployment", key, "offline", len(w.offline))
		return ctrl.Result{}, nil
	}
	message := waitText(w.online, offline, w.paused)
	if kind := fmt.Sprint(len(w.online) > 0, len(offline) > 0, len(w.paused) > 0); kind != st.awaited && message != "" {
		st.awaited = kind
		r.events.Event(d, corev1.EventTypeNormal, "RemovalWaits", message)
	}
	s := *d.Status.DeepCopy()
	s.ObservedGeneration, s.Phase, s.Failures = d.Generation, v1alpha1.RolloutRemoving, nil
	count(&s, w.counts)
	set(d, &s, v1alpha1.DeploymentProgressing, metav1.ConditionTrue, reasonRemoving, message)
	set(d, &s, v1alpha1.DeploymentAvailable, metav1.ConditionFalse, reasonRemoving, "it is being removed")
	st.phase = s.Phase
	after, err := r.report(ctx, d, st, s)
	if again {
		after = sooner(after, writeAgain)
	}
	return ctrl.Result{RequeueAfter: after}, err
}

// waiting finds the devices that have or run what the Deployment brought.
func (r *reconciler) waiting(key types.NamespacedName, st *state) (w waiting) {
	members := map[string]struct{}{}
	for d := range r.mirror.All() {
		spec, _ := r.index.spec(d.ID)
		owner, owned := ownerKey(key.Name, d.Document.Owners[key.Name])
		owned = owned && owner == key
		switch {
		case owned && spec.paused:
			w.paused = append(w.paused, d.ID)
		case owned:
			w.keys = append(w.keys, d.ID)
		case !st.mayRun(d, key.Name):
			continue
		case d.Online:
			w.online = append(w.online, d.ID)
		default:
			w.offline = append(w.offline, d.ID)
		}
		members[d.ID] = struct{}{}
		w.counts.Matched++
		for n, when := range map[*int]bool{&w.counts.Updated: owned, &w.counts.Offline: !d.Online, &w.counts.Paused: spec.paused} {
			if when {
				*n++
			}
		}
	}
	st.view.members.Store(&members)
	return w
}

// mayRun tells whether a device that has not the key in its desired state may run
// what it brought: it says so, or it has not taken up that the key is gone. Where
// somebody else has the name, what the device says is of them.
func (st *state) mayRun(d mirror.Device, name string) bool {
	if _, another := d.Document.State.Deployments[name]; another {
		return false
	}
	if d.Status == nil {
		return d.StatusSeq != 0 && st.removed[d.ID] != 0
	}
	if _, says := d.Status.Deployments[name]; says {
		return true
	}
	return d.Status.DesiredRevision < st.removed[d.ID]
}

// waitText names some of the devices that a removal waits for.
func waitText(online, offline, paused []string) string {
	var parts []string
	add := func(ids []string, format string) {
		if len(ids) == 0 {
			return
		}
		slices.Sort(ids)
		named := strings.Join(ids[:min(len(ids), maxNamed)], ", ")
		if len(ids) > maxNamed {
			named += ", …"
		}
		parts = append(parts, fmt.Sprintf(format, len(ids), named))
	}
	add(online, "waits for %d devices to remove it: %s")
	add(offline, "waits for %d devices that are offline: %s; with spec.deletion Online it does not")
	add(paused, "waits for %d devices whose spec.paused is set: %s")
	return strings.Join(parts, "; ")
}

package deployment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// defaultHistory is the default of spec.revisionHistoryLimit.
const defaultHistory = 10

// revisions are those of a Deployment, the oldest first. They are read from the API
// server: they are needed with a change of score only.
func (r *reconciler) revisions(ctx context.Context, d *v1alpha1.Deployment) ([]appsv1.ControllerRevision, error) {
	var list appsv1.ControllerRevisionList
	if err := r.live.List(ctx, &list, client.InNamespace(d.Namespace), client.MatchingLabels{v1alpha1.DeploymentLabel: d.Name}); err != nil {
		return nil, fmt.Errorf("list the revisions of %s: %w", client.ObjectKeyFromObject(d), err)
	}
	all := slices.DeleteFunc(list.Items, func(cr appsv1.ControllerRevision) bool { return !metav1.IsControlledBy(&cr, d) })
	slices.SortFunc(all, func(a, b appsv1.ControllerRevision) int { return int(a.Revision - b.Revision) })
	return all, nil
}

// keepRevision makes the score the newest revision, and returns its number. One that
// was there before gets a new number, as undo wants it. The oldest beyond the limit
// are deleted.
func (r *reconciler) keepRevision(ctx context.Context, d *v1alpha1.Deployment, score command.Score) (int64, error) {
	all, err := r.revisions(ctx, d)
	if err != nil {
		return 0, err
	}
	data, err := json.Marshal(score)
	if err != nil {
		return 0, err
	}
	name := revisionName(d, data)
	newest := int64(0)
	if len(all) > 0 {
		newest = all[len(all)-1].Revision
	}
	at := slices.IndexFunc(all, func(cr appsv1.ControllerRevision) bool { return cr.Name == name })
	switch {
	case at < 0:
		cr := appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{
				Name: name, Namespace: d.Namespace, Labels: map[string]string{v1alpha1.DeploymentLabel: d.Name},
				OwnerReferences: []metav1.OwnerReference{ownerReference(d)},
			},
			Data: runtime.RawExtension{Raw: data}, Revision: newest + 1,
		}
		if err := r.client.Create(ctx, &cr); err != nil {
			return 0, fmt.Errorf("keep revision %d: %w", cr.Revision, err)
		}
		all = append(all, cr)
	case all[at].Revision != newest:
		cr := all[at]
		cr.Revision = newest + 1
		if err := r.client.Update(ctx, &cr); err != nil {
			return 0, fmt.Errorf("make revision %d the newest: %w", all[at].Revision, err)
		}
		all = append(slices.Delete(all, at, at+1), cr)
	}
	limit := defaultHistory
	if d.Spec.RevisionHistoryLimit != nil {
		limit = int(*d.Spec.RevisionHistoryLimit)
	}
	for i := range len(all) - 1 - limit {
		if err := client.IgnoreNotFound(r.client.Delete(ctx, &all[i])); err != nil {
			return 0, fmt.Errorf("delete revision %d: %w", all[i].Revision, err)
		}
	}
	return all[len(all)-1].Revision, nil
}

// revisionName is that of the score, and of this Deployment only: one of the same
// name that was deleted a moment ago may have left its own.
func revisionName(d *v1alpha1.Deployment, data []byte) string {
	sum := sha256.Sum256(append([]byte(d.UID), data...))
	return d.Name + "-" + hex.EncodeToString(sum[:5])
}

// ownerReference does not block the deletion of the Deployment: some clusters let
// only those set that who may write the owner's finalizers.
func ownerReference(d *v1alpha1.Deployment) metav1.OwnerReference {
	ref := *metav1.NewControllerRef(d, v1alpha1.GroupVersion.WithKind("Deployment"))
	ref.BlockOwnerDeletion = nil
	return ref
}

// rollback puts the score of the revision that spec.rollbackTo names back, and clears
// the field.
func (r *reconciler) rollback(ctx context.Context, d *v1alpha1.Deployment) error {
	all, err := r.revisions(ctx, d)
	if err != nil {
		return err
	}
	wanted := *d.Spec.RollbackTo
	d = d.DeepCopy()
	d.Spec.RollbackTo = nil
	target, why := target(all, wanted, currentRevision(d, all))
	if why == "" {
		var score v1alpha1.Score
		if err := json.Unmarshal(target.Data.Raw, &score); err != nil {
			why = fmt.Sprintf("revision %d cannot be read: %v", target.Revision, err)
		} else {
			d.Spec.Score = score
		}
	}
	if err := r.client.Update(ctx, d); err != nil {
		return err
	}
	if why != "" {
		r.events.Event(d, corev1.EventTypeWarning, "RollbackFailed", why)
	} else {
		r.events.Eventf(d, corev1.EventTypeNormal, "RolledBack", "the score is that of revision %d again", target.Revision)
	}
	return nil
}

// currentRevision is the revision whose score the Deployment has; where that was
// never one, since it was invalid, it counts as the one after all others.
func currentRevision(d *v1alpha1.Deployment, all []appsv1.ControllerRevision) int64 {
	if score, err := scoreOf(d.Spec.Score); err == nil {
		if data, err := json.Marshal(score); err == nil {
			name := revisionName(d, data)
			for i := range all {
				if all[i].Name == name {
					return all[i].Revision
				}
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1].Revision + 1
}

// target finds the revision to go back to; why says that there is none.
func target(all []appsv1.ControllerRevision, wanted, current int64) (cr appsv1.ControllerRevision, why string) {
	var numbers []string
	for i := len(all) - 1; i >= 0; i-- {
		if wanted == 0 && all[i].Revision < current || wanted != 0 && all[i].Revision == wanted {
			return all[i], ""
		}
		numbers = append(numbers, fmt.Sprint(all[i].Revision))
	}
	if wanted == 0 {
		return cr, "there is no revision before the current one"
	}
	return cr, fmt.Sprintf("there is no revision %d; there are %s", wanted, strings.Join(numbers, ", "))
}

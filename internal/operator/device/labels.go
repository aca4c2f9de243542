package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// shownAnnotation names those of the metadata's labels that are there because
// spec.labels has them; others are somebody else's.
const shownAnnotation = "fleet.harmony.dev/labels"

// labelsResult is what became of the labels of one device.
type labelsResult struct {
	settled   bool   // spec and bucket are the same
	revision  uint64 // of the bucket then
	tryStatus bool   // what failed does not keep the status from being written
}

// syncLabels makes spec.labels, the bucket and the labels in the metadata the same.
// Whichever of the first two was changed last counts: a spec that is not the one last
// acted on was.
func (r *Reconciler) syncLabels(ctx context.Context, object *v1alpha1.Device, d mirror.Device) (labelsResult, error) {
	base := object.DeepCopy()
	specChanged := object.Generation != object.Status.ObservedGeneration
	bucketChanged := int64(d.LabelsRevision) != object.Status.LabelsRevision
	result := labelsResult{tryStatus: true, revision: d.LabelsRevision}
	var err error
	switch spec := plainLabels(object.Spec.Labels); {
	case d.LabelsFault != "" && !specChanged:
		// What is there stays until somebody writes something better.
	case d.LabelsFault == "" && maps.Equal(spec, d.Labels):
		result.settled = true
	case bucketChanged && !specChanged:
		object.Spec.Labels = specLabels(d.Labels)
	default:
		result.revision, err = r.Mirror.PutLabels(ctx, object.Name, d.LabelsRevision, spec)
		result.settled = err == nil
		if errors.Is(err, mirror.ErrConflict) {
			// The bucket's new revision comes by itself, and then the spec goes there.
			return result, nil
		}
	}
	showLabels(object)
	if maps.Equal(base.Labels, object.Labels) && maps.Equal(base.Annotations, object.Annotations) && maps.Equal(base.Spec.Labels, object.Spec.Labels) {
		return result, err
	}
	patchErr := r.Client.Patch(ctx, object, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsInvalid(patchErr) {
		r.Events.Eventf(base, corev1.EventTypeWarning, EventLabelsInvalid, "the broker's labels cannot be taken over: %v", patchErr)
		base.DeepCopyInto(object)
		// Nothing is gained by trying again: they are looked at when they change.
		result.settled = true
		return result, err
	}
	if patchErr != nil {
		result.tryStatus = false // object is not as it is stored
		return result, errors.Join(err, fmt.Errorf("write the labels of device %s: %w", object.Name, patchErr))
	}
	if !result.settled && err == nil {
		result.settled = maps.Equal(plainLabels(object.Spec.Labels), d.Labels)
	}
	return result, err
}

// showLabels repeats spec.labels in the metadata, where kubectl selects by them, and
// takes away those that were repeated there and are gone. A label that somebody else
// put there stays, also where spec.labels has its name.
func showLabels(object *v1alpha1.Device) {
	shown := map[string]bool{}
	for key := range strings.SplitSeq(object.Annotations[shownAnnotation], ",") {
		shown[key] = key != ""
	}
	labels := maps.Clone(object.Labels)
	for key := range shown {
		if _, ok := object.Spec.Labels[key]; shown[key] && !ok {
			delete(labels, key)
		}
	}
	if labels == nil {
		labels = map[string]string{}
	}
	var keys []string
	for key, value := range object.Spec.Labels {
		_, taken := labels[key]
		if taken && !shown[key] || len(validation.IsQualifiedName(key)) > 0 || strings.HasPrefix(key, v1alpha1.GroupVersion.Group+"/") {
			continue
		}
		labels[key] = string(value)
		keys = append(keys, key)
	}
	slices.Sort(keys)
	object.Labels = labels
	annotations := maps.Clone(object.Annotations)
	delete(annotations, shownAnnotation)
	if len(keys) > 0 {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[shownAnnotation] = strings.Join(keys, ",")
	}
	object.Annotations = annotations
}

func plainLabels(of map[string]v1alpha1.LabelValue) map[string]string {
	plain := make(map[string]string, len(of))
	for k, v := range of {
		plain[k] = string(v)
	}
	return plain
}

func specLabels(of map[string]string) map[string]v1alpha1.LabelValue {
	if len(of) == 0 {
		return nil
	}
	spec := make(map[string]v1alpha1.LabelValue, len(of))
	for k, v := range of {
		spec[k] = v1alpha1.LabelValue(v)
	}
	return spec
}

package deployment

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/rollout"
)

// Reasons of the conditions Available, Progressing and Conflict.
const (
	reasonAllReady   = "AllReady"
	reasonNotReady   = "NotReady"
	reasonConflicts  = "Conflicts"
	reasonNoConflict = "NoConflicts"

	reasonProgressing = "RolloutProgressing"
	reasonComplete    = "RolloutComplete"
	reasonPaused      = "RolloutPaused"
	reasonStopped     = "RolloutStopped"
	reasonBlocked     = "TooManyUnavailable"
	reasonRemoving    = "Removing"
)

// statusOf is the status of a Deployment whose rollout stands as out says.
func statusOf(d *v1alpha1.Deployment, st *state, out *rollout.Output) v1alpha1.DeploymentStatus {
	s := *d.Status.DeepCopy()
	s.ObservedGeneration, s.Phase = d.Generation, out.Phase
	count(&s, out.Counts)
	s.Failures = out.Failures
	if b := st.brought; b != nil {
		s.Revision = b.revision
		// The API keeps whole seconds.
		at := metav1.NewTime(b.memory.Started()).Rfc3339Copy()
		if s.RolloutStartedAt == nil || !s.RolloutStartedAt.Equal(&at) {
			s.RolloutStartedAt = &at
		}
	}
	set(d, &s, v1alpha1.DeploymentValid, metav1.ConditionTrue, reasonAccepted, "the score can be rolled out")
	if out.Ready == out.Online {
		set(d, &s, v1alpha1.DeploymentAvailable, metav1.ConditionTrue, reasonAllReady, fmt.Sprintf("%d of %d devices that are online run it", out.Ready, out.Online))
	} else {
		set(d, &s, v1alpha1.DeploymentAvailable, metav1.ConditionFalse, reasonNotReady, fmt.Sprintf("%d of %d devices that are online run it", out.Ready, out.Online))
	}
	conflictOf(d, &s, out)
	status, reason, message := progressOf(out)
	set(d, &s, v1alpha1.DeploymentProgressing, status, reason, message)
	return s
}

// progressOf is the condition Progressing.
func progressOf(out *rollout.Output) (status metav1.ConditionStatus, reason, message string) {
	where := whereOf(out)
	switch {
	case out.Phase == v1alpha1.RolloutPaused:
		return metav1.ConditionFalse, reasonPaused, "paused: " + where
	case out.Phase == v1alpha1.RolloutStopped:
		return metav1.ConditionFalse, reasonStopped, out.Stopped
	case out.Phase == v1alpha1.RolloutComplete:
		return metav1.ConditionTrue, reasonComplete, where
	case out.Blocked != "":
		return metav1.ConditionFalse, reasonBlocked, out.Blocked
	case out.InFlight == 0 && out.Waiting == 0 && out.Conflicts > 0:
		return metav1.ConditionFalse, reasonConflicts, where
	}
	return metav1.ConditionTrue, reasonProgressing, where
}

// whereOf says where the rollout stands, with what is worth saying only.
func whereOf(out *rollout.Output) string {
	parts := []string{fmt.Sprintf("%d of %d devices updated", out.Updated, out.Matched), fmt.Sprintf("%d ready", out.Ready)}
	for _, part := range []struct {
		n    int
		what string
	}{
		{out.InFlight, "on their way"}, {out.Failed, "failed"}, {out.Conflicts, "in conflict"},
		{out.Offline, "offline"}, {out.Paused, "paused"},
	} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	return strings.Join(parts, ", ")
}

func conflictOf(d *v1alpha1.Deployment, s *v1alpha1.DeploymentStatus, out *rollout.Output) {
	if out.Conflicts == 0 {
		set(d, s, v1alpha1.DeploymentConflict, metav1.ConditionFalse, reasonNoConflict, "no device has another deployment in its way")
		return
	}
	set(d, s, v1alpha1.DeploymentConflict, metav1.ConditionTrue, reasonConflicts, conflictText(out))
}

// conflictText names the first conflict.
func conflictText(out *rollout.Output) string {
	text := fmt.Sprintf("%d devices cannot take it beside what they have", out.Conflicts)
	for _, f := range out.Failures {
		if f.Phase == rollout.PhaseConflict {
			return text + "; " + f.Device + ": " + f.Message
		}
	}
	return text
}

// count puts the numbers into the status.
func count(s *v1alpha1.DeploymentStatus, n rollout.Counts) {
	s.Matched, s.Updated, s.Ready, s.Rejected = int32(n.Matched), int32(n.Updated), int32(n.Ready), int32(n.Rejected)
	s.Failed, s.Offline, s.Conflicts, s.Paused = int32(n.Failed), int32(n.Offline), int32(n.Conflicts), int32(n.Paused)
}

func condition(d *v1alpha1.Deployment, name string) *metav1.Condition {
	return meta.FindStatusCondition(d.Status.Conditions, name)
}

func set(d *v1alpha1.Deployment, s *v1alpha1.DeploymentStatus, name string, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: name, Status: status, Reason: reason, Message: message, ObservedGeneration: d.Generation,
	})
}

// report writes the status if it differs. after is when it can be written where it
// was written a moment ago; 0: it is as it should be.
func (r *reconciler) report(ctx context.Context, d *v1alpha1.Deployment, st *state, want v1alpha1.DeploymentStatus) (after time.Duration, err error) {
	if equality.Semantic.DeepEqual(d.Status, want) {
		return 0, nil
	}
	if wait := time.Until(st.wrote.Add(r.opts.StatusInterval)); wait > 0 {
		return wait, nil
	}
	d = d.DeepCopy()
	d.Status = want
	if err := r.client.Status().Update(ctx, d); err != nil {
		return 0, err
	}
	st.wrote = time.Now()
	return 0, nil
}

// reportInvalid says why nothing can be rolled out. What ran before goes on, on the
// devices that are selected.
func (r *reconciler) reportInvalid(ctx context.Context, d *v1alpha1.Deployment, st *state) (ctrl.Result, error) {
	s := *d.Status.DeepCopy()
	again := false
	if st.goal.selector != nil {
		in := rollout.Input{Params: rollout.ParamsOf(d.Spec.Rollout), Now: time.Now()}
		key := client.ObjectKeyFromObject(d)
		found, err := r.survey(ctx, key, st, in.Now, in.ProgressDeadline)
		if err != nil {
			return ctrl.Result{}, err
		}
		again = len(found.strays) > 0 && r.take(ctx, key, st, found.strays)
		// A rollout that does not move: it only counts.
		in.Paused, in.Devices = true, found.matched
		out := rollout.Plan(in)
		count(&s, out.Counts)
		s.Failures = nil
		conflictOf(d, &s, &out)
		available, reason := metav1.ConditionFalse, reasonNotReady
		set(d, &s, v1alpha1.DeploymentAvailable, available, reason, "what is declared cannot be rolled out")
	}
	s.ObservedGeneration, s.Phase = d.Generation, v1alpha1.RolloutInvalid
	set(d, &s, v1alpha1.DeploymentValid, metav1.ConditionFalse, st.goal.reason, st.goal.fault)
	set(d, &s, v1alpha1.DeploymentProgressing, metav1.ConditionFalse, st.goal.reason, "nothing is written; what ran before goes on: "+st.goal.fault)
	if st.phase != v1alpha1.RolloutInvalid {
		st.phase = v1alpha1.RolloutInvalid
		r.events.Event(d, corev1.EventTypeWarning, st.goal.reason, st.goal.fault)
	}
	after, err := r.report(ctx, d, st, s)
	if again {
		after = sooner(after, writeAgain)
	}
	return ctrl.Result{RequeueAfter: after}, err
}

// reportAway says, once the broker has been away for a while, that nothing is known.
// The numbers stay as they were.
func (r *reconciler) reportAway(ctx context.Context, d *v1alpha1.Deployment, st *state, fault error) (ctrl.Result, error) {
	if !r.mirror.Away() {
		return ctrl.Result{RequeueAfter: awayAgain}, nil
	}
	s := *d.Status.DeepCopy()
	message := "the numbers are of before the operator lost the broker: " + fault.Error()
	set(d, &s, v1alpha1.DeploymentAvailable, metav1.ConditionUnknown, v1alpha1.ReasonBrokerAway, message)
	set(d, &s, v1alpha1.DeploymentProgressing, metav1.ConditionUnknown, v1alpha1.ReasonBrokerAway, message)
	if _, err := r.report(ctx, d, st, s); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: awayAgain}, nil
}

// announce tells of what is new in the rollout as events.
func (r *reconciler) announce(d *v1alpha1.Deployment, st *state, out *rollout.Output) {
	if out.Conflicts > 0 && st.conflicts == 0 {
		r.events.Event(d, corev1.EventTypeWarning, "Conflict", conflictText(out))
	}
	before := st.phase
	st.conflicts, st.phase = out.Conflicts, out.Phase
	if before == out.Phase {
		return
	}
	log := r.log.With("deployment", client.ObjectKeyFromObject(d), "revision", st.brought.revision)
	switch out.Phase {
	case v1alpha1.RolloutComplete:
		r.events.Eventf(d, corev1.EventTypeNormal, reasonComplete, "revision %d: %s", st.brought.revision, whereOf(out))
	case v1alpha1.RolloutStopped:
		r.events.Eventf(d, corev1.EventTypeWarning, reasonStopped, "revision %d: %s", st.brought.revision, out.Stopped)
	case v1alpha1.RolloutPaused:
		r.events.Eventf(d, corev1.EventTypeNormal, reasonPaused, "revision %d: %s", st.brought.revision, whereOf(out))
	case v1alpha1.RolloutProgressing:
		if before == v1alpha1.RolloutPaused || before == v1alpha1.RolloutStopped {
			r.events.Eventf(d, corev1.EventTypeNormal, "RolloutResumed", "revision %d: %s", st.brought.revision, whereOf(out))
		}
	}
	log.Info("a rollout goes on", "from", string(before), "to", string(out.Phase), "where", whereOf(out), "stopped", out.Stopped)
}

package deployment

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/rollout"
)

// A pass writes in portions, and for no longer than bringTime before it tells the
// status; the next goes on at once.
const (
	bringTime    = time.Second
	bringPortion = 500 // devices
)

// rollOut brings the score of a Deployment to its devices as far as that may go now,
// removes it from others, and reports.
func (r *Controller) rollOut(ctx context.Context, d *v1alpha1.Deployment, st *state) (ctrl.Result, error) {
	key := client.ObjectKeyFromObject(d)
	st.read(d)
	if st.goal.fault != "" {
		return r.reportInvalid(ctx, d, st)
	}
	begin := time.Now()
	if err := r.begin(ctx, d, st, begin); err != nil {
		return ctrl.Result{}, err
	}
	b, in := st.brought, rollout.Input{Params: rollout.ParamsOf(d.Spec.Rollout)}
	var out rollout.Output
	var s survey
	again := false
	for {
		in.Now = time.Now()
		var err error
		if s, err = r.survey(ctx, key, st, in.Now, in.ProgressDeadline); err != nil {
			return ctrl.Result{}, err
		}
		if b.generation != d.Generation {
			b.generation = d.Generation
			if b.stopped != "" {
				b.stopped = ""
				b.memory.Resume(in.Now, s.matched)
				continue
			}
		}
		in.Devices, in.Stopped = s.matched, b.stopped
		out = rollout.Plan(in)
		b.stopped = out.Stopped
		if len(out.Take) == 0 {
			break
		}
		if st.unfinished = in.Now.Sub(begin) > bringTime; again || st.unfinished {
			break
		}
		again = r.bring(ctx, key, st, out.Take[:min(len(out.Take), bringPortion)])
	}
	if len(s.strays) > 0 {
		again = r.take(ctx, key, st, s.strays) || again
	}
	clear(st.removed)
	r.announce(d, st, &out)
	after, err := r.report(ctx, d, st, statusOf(d, st, &out))
	if again {
		after = sooner(after, writeAgain)
	}
	if st.unfinished {
		after = time.Millisecond
	}
	if !out.Next.IsZero() {
		after = sooner(after, max(time.Until(out.Next), time.Millisecond))
	}
	return ctrl.Result{RequeueAfter: after}, err
}

// read keeps what the Deployment asks for.
func (st *state) read(d *v1alpha1.Deployment) {
	if st.goal != nil && st.goal.uid == d.UID && st.goal.generation == d.Generation {
		return
	}
	if st.goal == nil || st.goal.uid != d.UID {
		st.brought, st.score, st.phase = nil, "", d.Status.Phase
		st.conflicts = int(d.Status.Conflicts)
	}
	st.goal = newGoal(d)
	st.view.selector.Store(st.goal.selector)
}

// begin starts the rollout of a score that is not the last one's.
func (r *Controller) begin(ctx context.Context, d *v1alpha1.Deployment, st *state, now time.Time) error {
	score := st.goal.score.Type + " " + string(st.goal.score.Data)
	if st.score == score {
		return nil
	}
	revision, err := r.keepRevision(ctx, d, st.goal.score)
	if err != nil {
		return err
	}
	goesOn := st.brought == nil && d.Status.Revision == revision
	st.brought, st.score = newBrought(d, revision, now, goesOn), score
	if !goesOn {
		r.events.Eventf(d, corev1.EventTypeNormal, "RolloutStarted", "revision %d is brought to the devices", revision)
		r.log.Info("a rollout has begun", "deployment", client.ObjectKeyFromObject(d), "revision", revision)
	}
	return nil
}

// sooner is the shorter of two pauses of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

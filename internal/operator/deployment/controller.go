package deployment

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// Options of the controller.
type Options struct {
	// Mirror is the truth of the devices. It has to be in the manager as well.
	Mirror *mirror.Mirror
	// Owns tells whether a Device is this operator's; nil: each that the manager's cache
	// has. Others are as if they were not there.
	Owns func(metav1.Object) bool
	// Namespaces are those whose Deployments the manager's cache has. Keys of
	// Deployments of other namespaces are left alone.
	Namespaces []string

	// StatusInterval is the shortest time between two writes of one status; default 1 s.
	StatusInterval time.Duration
	// Writers is how many documents are written at one time; default 16.
	Writers int
	// Passes is how many Deployments are worked on at one time; default 4.
	Passes int
	// Logger gets what happens; nil discards.
	Logger *slog.Logger
}

// Pauses between passes.
const (
	// settle is how long the changes of devices are collected for one pass.
	settle = 50 * time.Millisecond
	// idle is how many times the duration of a pass lies between it and the next: a
	// pass looks at every device.
	idle = 8
	// awayAgain is when a Deployment is looked at again while the broker is away.
	awayAgain = time.Second
	// writeAgain is when it is after a write that failed.
	writeAgain = 200 * time.Millisecond
	// faultMin and faultMax are the pauses after passes that failed in a row: an API
	// server that was away is to find the operator at work soon after.
	faultMin, faultMax = 50 * time.Millisecond, 5 * time.Second
	// passTime bounds one pass; what is left is for the next.
	passTime = 30 * time.Second
)

// Controller works on one Deployment at a time for each of its names.
type Controller struct {
	opts   Options
	client client.Client // reads from the cache
	live   client.Reader // reads from the API server
	mirror *mirror.Mirror
	events record.EventRecorder
	log    *slog.Logger
	index  *index
	passes atomic.Uint64 // that were made, for tests

	mu     sync.Mutex
	states map[types.NamespacedName]*state
}

// Add puts the controller into the manager. It gives it for its metrics.
func Add(mgr manager.Manager, o Options) (*Controller, error) {
	if o.StatusInterval == 0 {
		o.StatusInterval = time.Second
	}
	if o.Writers == 0 {
		o.Writers = 16
	}
	if o.Owns == nil {
		o.Owns = func(metav1.Object) bool { return true }
	}
	if o.Passes == 0 {
		o.Passes = 4
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Controller{
		opts: o, client: mgr.GetClient(), live: mgr.GetAPIReader(), mirror: o.Mirror,
		events: mgr.GetEventRecorderFor("fleet-operator"), log: o.Logger, states: map[types.NamespacedName]*state{},
	}
	r.index = newIndex(r, mgr.GetCache())
	if err := mgr.Add(r.index); err != nil {
		return nil, err
	}
	// Writes of the status are this controller's own, and nothing to act on.
	acted := predicate.Or(predicate.GenerationChangedPredicate{}, predicate.NewPredicateFuncs(func(o client.Object) bool {
		return o.GetDeletionTimestamp() != nil
	}))
	return r, ctrl.NewControllerManagedBy(mgr).Named("deployment").
		Watches(&v1alpha1.Deployment{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(acted)).
		WatchesRawSource(source.Func(r.index.connect)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: o.Passes,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[ctrl.Request](faultMin, faultMax),
		}).
		Complete(r)
}

// state is what is remembered of a Deployment between two passes.
type state struct {
	view  view                                      // what the index reads
	shown atomic.Pointer[v1alpha1.DeploymentStatus] // what metrics show; nil: nothing yet

	goal    *goal
	score   string   // that brought is of, in its canonical form; empty: none
	brought *brought // nil: none yet

	phase      v1alpha1.RolloutPhase      // that was last announced
	conflicts  int                        // that were
	away       bool                       // the broker was, in the last pass
	written    *v1alpha1.DeploymentStatus // the last status, which the cache may not have yet; nil: none
	wrote      time.Time                  // when that was
	uid        types.UID                  // of the object that all this is of
	unfinished bool                       // the last pass stopped at its time, and the next goes on
	rested     time.Time                  // when the next pass may begin
	removed    map[string]uint64          // the revision of desired state from which on the key is gone, by device
	awaited    string                     // what was last announced of a removal
}

// restore gives the object the status that was written last.
func (st *state) restore(d *v1alpha1.Deployment) {
	if st.uid != d.UID {
		st.uid, st.written = d.UID, nil
	}
	if st.written != nil {
		d.Status = *st.written.DeepCopy()
	}
}

func (r *Controller) state(key types.NamespacedName) *state {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.states[key]
	if s == nil {
		s = &state{removed: map[string]uint64{}}
		r.states[key] = s
	}
	return s
}

func (r *Controller) forget(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.states, key)
}

// watched tells whether the Deployments of that namespace are known.
func (r *Controller) watched(namespace string) bool {
	return slices.Contains(r.opts.Namespaces, namespace)
}

// Reconcile makes one pass over a Deployment.
func (r *Controller) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.index.ready() {
		return ctrl.Result{RequeueAfter: settle}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	st := r.state(req.NamespacedName)
	begin := time.Now()
	if wait := st.rested.Sub(begin); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	r.passes.Add(1)
	st.unfinished = false
	result, err := r.pass(ctx, req.NamespacedName, st)
	end := time.Now()
	if !st.unfinished {
		st.rested = end.Add(min(idle*end.Sub(begin), time.Second))
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		// The cache is behind: it is about to say so.
		return ctrl.Result{RequeueAfter: settle}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	return result, nil
}

func (r *Controller) pass(ctx context.Context, key types.NamespacedName, st *state) (ctrl.Result, error) {
	var d v1alpha1.Deployment
	err := r.client.Get(ctx, key, &d)
	gone := apierrors.IsNotFound(err)
	if err != nil && !gone {
		return ctrl.Result{}, err
	}
	if !gone {
		st.restore(&d)
	}
	if fault := r.mirror.NotCurrent(); fault != nil {
		st.away = true
		if gone {
			return ctrl.Result{RequeueAfter: awayAgain}, nil
		}
		return r.reportAway(ctx, &d, st, fault)
	}
	if gone {
		return r.gone(ctx, key, st)
	}
	if st.away {
		st.away = false
		if st.brought != nil {
			st.brought.memory.Interrupt()
		}
	}
	if d.DeletionTimestamp != nil {
		return r.remove(ctx, &d, st)
	}
	if !controllerutil.ContainsFinalizer(&d, v1alpha1.Finalizer) {
		if d.Status.Phase == "" {
			r.log.Info("a Deployment is new", "deployment", key)
		}
		controllerutil.AddFinalizer(&d, v1alpha1.Finalizer)
		if err := r.client.Update(ctx, &d); err != nil {
			return ctrl.Result{}, err
		}
	}
	if d.Spec.RollbackTo != nil {
		return ctrl.Result{RequeueAfter: settle}, r.rollback(ctx, &d)
	}
	return r.rollOut(ctx, &d, st)
}

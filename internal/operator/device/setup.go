package device

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
)

// workers is how many devices are worked on at one time: enough to hide the API
// server's round trips when a whole fleet reports for the first time.
const workers = 16

// awayCheck is how often, before the mirror is synced for the first time, it is asked
// whether the broker is away.
const awayCheck = time.Second

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// feeder puts into the controller's queue what the mirror tells.
type feeder struct {
	queues chan queue
}

func newFeeder() feeder { return feeder{queues: make(chan queue, 1)} }

// SetupWithManager adds the controller to the manager, which runs it while it leads.
func (r *Reconciler) SetupWithManager(mgr manager.Manager) error {
	// Its own writes of the status tell a controller nothing.
	changed := predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{})
	err := builder.ControllerManagedBy(mgr).Named("device").
		For(&v1alpha1.Device{}, builder.WithPredicates(changed)).
		WatchesRawSource(source.Func(func(_ context.Context, q queue) error {
			r.queues <- q
			return nil
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
	if err != nil {
		return err
	}
	return mgr.Add(manager.RunnableFunc(r.feed))
}

func (r *Reconciler) synced() bool {
	select {
	case <-r.Mirror.Synced():
		return true
	default:
		return false
	}
}

// feed runs until ctx ends.
func (r *Reconciler) feed(ctx context.Context) error {
	var q queue
	select {
	case <-ctx.Done():
		return nil
	case q = <-r.queues:
	}
	changes := r.Mirror.Subscribe()
	defer changes.Close()
	if !r.awaitSync(ctx, q) {
		return nil
	}
	// Those of which the broker knows nothing, too.
	if err := r.addObjects(ctx, q); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes.Ready():
			for _, id := range changes.Take() {
				q.Add(reconcile.Request{NamespacedName: types.NamespacedName{Name: id}})
			}
		}
	}
}

// awaitSync returns true when the mirror is synced. If the broker is away until then,
// the objects that are there are told.
func (r *Reconciler) awaitSync(ctx context.Context, q queue) bool {
	tick := time.NewTicker(awayCheck)
	defer tick.Stop()
	for told := false; ; {
		select {
		case <-ctx.Done():
			return false
		case <-r.Mirror.Synced():
			return true
		case <-tick.C:
			if !told && r.Mirror.Away() {
				told = r.addObjects(ctx, q) == nil
			}
		}
	}
}

func (r *Reconciler) addObjects(ctx context.Context, q queue) error {
	var list v1alpha1.DeviceList
	if err := r.Client.List(ctx, &list); err != nil {
		return err
	}
	for i := range list.Items {
		q.Add(reconcile.Request{NamespacedName: types.NamespacedName{Name: list.Items[i].Name}})
	}
	return nil
}

var descForeign = prometheus.NewDesc("fleet_operator_foreign_devices",
	"Devices that report and whose Device object is not this operator's.", nil, nil)

// Describe is for Prometheus.
func (r *Reconciler) Describe(ch chan<- *prometheus.Desc) { ch <- descForeign }

// Collect is for Prometheus: a reconciler is registered as a collector.
func (r *Reconciler) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descForeign, prometheus.GaugeValue, float64(r.Foreign()))
}

package deployment

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// index knows what people say of each device, and which Deployments a change of a
// device concerns.
type index struct {
	r     *reconciler
	cache cache.Cache

	started chan struct{} // closed once the devices of the cache are known

	mu      sync.RWMutex
	devices map[string]deviceSpec
	queue   workqueue.TypedRateLimitingInterface[ctrl.Request] // nil: the controller does not run yet
}

// deviceSpec is the spec of a Device.
type deviceSpec struct {
	labels labels.Set
	paused bool
}

// view is the part of a state that the index reads: which devices a Deployment
// selects by what, and which it had in its last pass.
type view struct {
	selector atomic.Pointer[selector]
	members  atomic.Pointer[map[string]struct{}]
}

func (v *view) concerns(name string, d mirror.Device, of labels.Set) bool {
	if members := v.members.Load(); members != nil {
		if _, ok := (*members)[d.ID]; ok {
			return true
		}
	}
	if _, ok := d.Document.State.Deployments[name]; ok {
		return true
	}
	return v.selector.Load().matches(d.ID, of)
}

func newIndex(r *reconciler, c cache.Cache) *index {
	return &index{r: r, cache: c, started: make(chan struct{}), devices: map[string]deviceSpec{}}
}

// NeedLeaderElection is that of the controller.
func (x *index) NeedLeaderElection() bool { return true }

// connect gives the index the queue of the controller.
func (x *index) connect(_ context.Context, q workqueue.TypedRateLimitingInterface[ctrl.Request]) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.queue = q
	return nil
}

func (x *index) ready() bool {
	select {
	case <-x.started:
		return true
	default:
		return false
	}
}

// Start follows the devices until ctx ends.
func (x *index) Start(ctx context.Context) error {
	changes := x.r.mirror.Subscribe()
	defer changes.Close()
	informer, err := x.cache.GetInformer(ctx, &v1alpha1.Device{})
	if err != nil {
		return fmt.Errorf("follow the devices: %w", err)
	}
	reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    x.take,
		UpdateFunc: func(_, o any) { x.take(o) },
		DeleteFunc: x.drop,
	})
	if err != nil {
		return fmt.Errorf("follow the devices: %w", err)
	}
	defer func() { _ = informer.RemoveEventHandler(reg) }()
	if !toolscache.WaitForCacheSync(ctx.Done(), reg.HasSynced) {
		return nil
	}
	close(x.started)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes.Ready():
			for _, id := range changes.Take() {
				x.route(id)
			}
		}
	}
}

// spec gives what people say of a device; ok is false where there is no object.
func (x *index) spec(id string) (s deviceSpec, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s, ok = x.devices[id]
	return s, ok
}

// labels are those that select a device: of its object, or of the broker where there
// is none at the moment.
func (x *index) labels(d mirror.Device) labels.Set {
	if s, ok := x.spec(d.ID); ok {
		return s.labels
	}
	return d.Labels
}

func (x *index) take(o any) {
	d, ok := o.(*v1alpha1.Device)
	if !ok {
		return
	}
	s := deviceSpec{paused: d.Spec.Paused, labels: make(labels.Set, len(d.Spec.Labels))}
	for k, v := range d.Spec.Labels {
		s.labels[k] = string(v)
	}
	x.mu.Lock()
	before, known := x.devices[d.Name]
	same := known && before.paused == s.paused && maps.Equal(before.labels, s.labels)
	if !same {
		x.devices[d.Name] = s
	}
	x.mu.Unlock()
	if !same {
		x.route(d.Name)
	}
}

func (x *index) drop(o any) {
	if last, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = last.Obj
	}
	d, ok := o.(*v1alpha1.Device)
	if !ok {
		return
	}
	x.mu.Lock()
	delete(x.devices, d.Name)
	x.mu.Unlock()
	x.route(d.Name)
}

// route asks for a pass over each Deployment that a change of the device concerns.
// Until the index is ready every Deployment is looked at anyhow.
func (x *index) route(id string) {
	x.mu.RLock()
	queue := x.queue
	x.mu.RUnlock()
	if queue == nil || !x.ready() {
		return
	}
	d, ok := x.r.mirror.Device(id)
	if !ok {
		return
	}
	of := x.labels(d)
	ask := func(key types.NamespacedName) { queue.AddAfter(ctrl.Request{NamespacedName: key}, settle) }
	x.r.mu.Lock()
	defer x.r.mu.Unlock()
	for key, st := range x.r.states {
		if st.view.concerns(key.Name, d, of) {
			ask(key)
		}
	}
	for name, owner := range d.Document.Owners {
		if key, ok := ownerKey(name, owner); ok && x.r.states[key] == nil && x.r.watched(key.Namespace) {
			ask(key) // it may be gone, and its key is to follow
		}
	}
}

// Package device keeps a Device object for every device that ever reported: it makes
// the object, keeps its labels the same as the broker's, and writes its status when
// something else than the time of the last heartbeat changes.
//
//	r := device.New(device.Options{Client: …, Mirror: m, Namespace: ns, …})
//	err := r.SetupWithManager(mgr)
//
// An object is the operator's by its owner reference to the operator's namespace. One
// that has another owner, or none, is never touched; it is counted and logged.
package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

const (
	// writePause is the least time between two writes of one device's status.
	writePause = time.Second
	// foreignPause is how often an object that is not the operator's is looked at
	// again: nothing tells when it goes.
	foreignPause = time.Minute
)

// Reasons of a Device's events.
const (
	EventRegistered    = "DeviceRegistered"
	EventOnline        = "DeviceOnline"
	EventOffline       = "DeviceOffline"
	EventLabelsInvalid = "LabelsInvalid"
)

// Options of a reconciler; all but Logger are needed.
type Options struct {
	// Client reads Devices from a cache that holds those with the label
	// v1alpha1.NamespaceLabel of Namespace.
	Client client.Client
	// Reader reads them from the API server.
	Reader client.Reader
	Mirror *mirror.Mirror
	Events record.EventRecorder
	// Namespace is the operator's own; its Devices go with it.
	Namespace Owner
	// Logger gets what happens; nil discards.
	Logger *slog.Logger
}

// Owner is a namespace as an owner of objects.
type Owner struct {
	Name string
	UID  types.UID
}

// Reference is the owner reference to the namespace.
func (o Owner) Reference() metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Namespace", Name: o.Name, UID: o.UID}
}

// Owns tells whether the object is the operator's.
func (o Owner) Owns(object metav1.Object) bool {
	for _, r := range object.GetOwnerReferences() {
		if r.APIVersion == "v1" && r.Kind == "Namespace" && r.UID == o.UID {
			return true
		}
	}
	return false
}

// Reconciler keeps Device objects.
type Reconciler struct {
	Options
	log *slog.Logger
	now func() time.Time

	feeder

	mu      sync.Mutex
	written map[string]time.Time // when the status was last written
	foreign map[string]bool      // devices whose object is somebody else's
}

// New makes a reconciler.
func New(o Options) *Reconciler {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Reconciler{Options: o, log: log, now: time.Now, feeder: newFeeder(), written: map[string]time.Time{}, foreign: map[string]bool{}}
}

// Reconcile brings the object of one device to what the mirror has.
func (r *Reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	id := request.Name
	d, _ := r.Mirror.Device(id)
	synced := r.synced()
	object := &v1alpha1.Device{}
	err := r.Client.Get(ctx, request.NamespacedName, object)
	switch {
	case apierrors.IsNotFound(err) && (!synced || !d.Reported()):
		return reconcile.Result{}, nil
	case apierrors.IsNotFound(err):
		if object, err = r.create(ctx, d); object == nil || err != nil {
			return reconcile.Result{RequeueAfter: foreignPause}, err
		}
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read device %s: %w", id, err)
	}
	if !r.Namespace.Owns(object) {
		r.setForeign(id, true)
		return reconcile.Result{RequeueAfter: foreignPause}, nil
	}
	r.setForeign(id, false)
	if !object.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil // it comes back when it is gone
	}
	if !synced {
		if !r.Mirror.Away() {
			return reconcile.Result{}, nil // each is looked at again when it is
		}
		return r.writeStatus(ctx, object, awayStatus(object.Status))
	}
	labels, err := r.syncLabels(ctx, object, d)
	if err != nil && !labels.tryStatus {
		return reconcile.Result{}, err
	}
	status := newStatus(object, d)
	if labels.settled {
		status.LabelsRevision, status.ObservedGeneration = int64(labels.revision), object.Generation
	}
	result, statusErr := r.writeStatus(ctx, object, status)
	return result, errors.Join(err, statusErr)
}

// create makes the object, or finds out why there is one that the cache does not
// have. It returns nil where that is somebody else's.
func (r *Reconciler) create(ctx context.Context, d mirror.Device) (*v1alpha1.Device, error) {
	object := &v1alpha1.Device{ObjectMeta: metav1.ObjectMeta{
		Name: d.ID, Labels: map[string]string{v1alpha1.NamespaceLabel: r.Namespace.Name},
		OwnerReferences: []metav1.OwnerReference{r.Namespace.Reference()},
	}}
	if d.LabelsFault == "" {
		object.Spec.Labels = specLabels(d.Labels)
	}
	showLabels(object)
	if !r.isForeign(d.ID) {
		err := r.Client.Create(ctx, object)
		if apierrors.IsInvalid(err) {
			// The bucket has what the object cannot have; the device is there nevertheless.
			r.Events.Eventf(r.eventTarget(), corev1.EventTypeWarning, EventLabelsInvalid, "the labels of device %s are left out: %v", d.ID, err)
			object.Spec.Labels, object.Labels, object.Annotations = nil, map[string]string{v1alpha1.NamespaceLabel: r.Namespace.Name}, nil
			err = r.Client.Create(ctx, object)
		}
		if err == nil {
			r.Events.Eventf(object, corev1.EventTypeNormal, EventRegistered, "the device reported for the first time, with agent %s", agentVersion(d))
			return object, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("make device %s: %w", d.ID, err)
		}
	}
	found := &v1alpha1.Device{}
	if err := r.Reader.Get(ctx, client.ObjectKey{Name: d.ID}, found); err != nil {
		if apierrors.IsNotFound(err) {
			r.setForeign(d.ID, false)
			return nil, fmt.Errorf("device %s: it was deleted just now: %w", d.ID, err)
		}
		return nil, fmt.Errorf("read device %s: %w", d.ID, err)
	}
	if !r.Namespace.Owns(found) {
		r.setForeign(d.ID, true)
		return nil, nil
	}
	if found.Labels[v1alpha1.NamespaceLabel] == r.Namespace.Name {
		return found, nil // the cache will have it
	}
	// Somebody took the label away by which the cache finds it.
	base := found.DeepCopy()
	if found.Labels == nil {
		found.Labels = map[string]string{}
	}
	found.Labels[v1alpha1.NamespaceLabel] = r.Namespace.Name
	if err := r.Client.Patch(ctx, found, client.MergeFrom(base)); err != nil {
		return nil, fmt.Errorf("label device %s: %w", d.ID, err)
	}
	return found, nil
}

// writeStatus writes the status if it says something new, and not too often.
func (r *Reconciler) writeStatus(ctx context.Context, object *v1alpha1.Device, status v1alpha1.DeviceStatus) (reconcile.Result, error) {
	if sameStatus(object.Status, status) {
		return reconcile.Result{}, nil
	}
	if wait := r.pause(object.Name); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	base := object.DeepCopy()
	object.Status = status
	if err := r.Client.Status().Patch(ctx, object, client.MergeFrom(base)); err != nil {
		if apierrors.IsNotFound(err) {
			return reconcile.Result{}, nil // deleted meanwhile; that is told
		}
		return reconcile.Result{}, fmt.Errorf("write the status of device %s: %w", object.Name, err)
	}
	r.mu.Lock()
	r.written[object.Name] = r.now()
	r.mu.Unlock()
	r.tellOnline(object, base.Status.Conditions, status.Conditions)
	return reconcile.Result{}, nil
}

// pause is how long the status of a device must not be written yet.
func (r *Reconciler) pause(id string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait := writePause - r.now().Sub(r.written[id])
	if wait <= 0 {
		delete(r.written, id)
	}
	return wait
}

// sameStatus tells whether only the time of the last heartbeat differs.
func sameStatus(a, b v1alpha1.DeviceStatus) bool {
	a.LastHeartbeatTime, b.LastHeartbeatTime = nil, nil
	return equality.Semantic.DeepEqual(a, b)
}

func (r *Reconciler) isForeign(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.foreign[id]
}

// setForeign keeps whose object a device has, and logs where it is another's.
func (r *Reconciler) setForeign(id string, foreign bool) {
	r.mu.Lock()
	was := r.foreign[id]
	if foreign {
		r.foreign[id] = true
	} else {
		delete(r.foreign, id)
	}
	r.mu.Unlock()
	if foreign && !was {
		r.log.Warn("the Device object of a device is not this operator's and is left alone: delete it, and it is made anew; or give the device another id",
			"device", id, "namespace", r.Namespace.Name)
	}
}

// Foreign is how many devices have an object that is somebody else's.
func (r *Reconciler) Foreign() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.foreign)
}

// eventTarget is what an event is about where there is no object yet.
func (r *Reconciler) eventTarget() *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: r.Namespace.Name, UID: r.Namespace.UID}}
}

func agentVersion(d mirror.Device) string {
	if d.Status == nil {
		return "of an unreadable status"
	}
	return d.Status.AgentVersion
}

package deployment

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

const patience = 60 * time.Second

// world is a real API server, a real broker, simulated devices, and the controller.
type world struct {
	t      testing.TB
	kube   *kubetest.Server
	c      client.Client
	ns     string
	broker *fleettest.Broker
	fleet  *fleettest.Fleet

	mirror     *mirror.Mirror // of the operator that runs
	controller *Controller
	stop       func() // ends it as a kill does: whatever it was doing
}

func newWorld(t testing.TB, o fleettest.Options) *world {
	t.Helper()
	return newWorldOn(t, kubetest.Shared(t), o)
}

func newWorldOn(t testing.TB, kube *kubetest.Server, o fleettest.Options) *world {
	t.Helper()
	w := &world{t: t, kube: kube, c: kube.Client(t), ns: kube.Namespace(t), broker: fleettest.StartBroker(t)}
	w.fleet = w.broker.Fleet(t, o)
	return w
}

// operator starts the controller on a mirror of its own.
func (w *world) operator() {
	w.t.Helper()
	w.operatorAs(w.kube.Config(), slog.New(slog.NewTextHandler(w.t.Output(), nil)))
}

func (w *world) operatorAs(config *rest.Config, log *slog.Logger) {
	w.t.Helper()
	m := mirror.New(w.broker.Data(w.t), mirror.Options{DisconnectGrace: 50 * time.Millisecond, AwayAfter: 300 * time.Millisecond, Logger: log})
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: kubetest.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Logger:     logr.FromSlogHandler(log.Handler()),
		Controller: ctrlconfig.Controller{SkipNameValidation: ptr(true)}, // managers of tests share a process
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.Device{}:     {Label: labels.SelectorFromSet(labels.Set{v1alpha1.NamespaceLabel: w.ns})},
			&v1alpha1.Deployment{}: {Namespaces: map[string]cache.Config{w.ns: {}}},
		}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := mgr.Add(m); err != nil {
		w.t.Fatal(err)
	}
	controller, err := Add(mgr, Options{Mirror: m, Namespaces: []string{w.ns}, StatusInterval: 100 * time.Millisecond, Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stopped := false
	w.mirror, w.controller = m, controller
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("the manager ended with %v", err)
			}
		case <-time.After(patience):
			w.t.Error("the manager does not end")
		}
	}
	w.t.Cleanup(w.stop)
}

// leave takes devices offline, as the operator sees it.
func (w *world) leave(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		w.wait("online: "+id, func() bool { d, ok := w.mirror.Device(id); return ok && d.Online })
	}
	w.fleet.Leave(ids...)
	for _, id := range ids {
		w.wait("offline: "+id, func() bool {
			w.mirror.Disconnected(id, time.Now())
			d, ok := w.mirror.Device(id)
			return ok && !d.Online
		})
	}
}

func (w *world) wait(what string, cond func() bool) {
	w.t.Helper()
	testwait.For(w.t, patience, what, cond)
}

// score has one service of that image.
func score(image string, ports ...string) v1alpha1.Score {
	return v1alpha1.Score{Type: command.ScorePodmanV0, Data: v1alpha1.ScoreData{Services: []v1alpha1.Service{{Name: "main", Image: image, Ports: ports}}}}
}

// create makes a Deployment for all devices, changed as asked.
func (w *world) create(name string, change func(*v1alpha1.Deployment)) *v1alpha1.Deployment {
	w.t.Helper()
	d := &v1alpha1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}}
	d.Spec.Selector.All, d.Spec.Score = true, score("example.org/good:1")
	if change != nil {
		change(d)
	}
	if err := w.c.Create(w.t.Context(), d); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// change updates the spec of a Deployment, over whatever others do meanwhile.
func (w *world) change(name string, change func(*v1alpha1.Deployment)) {
	w.t.Helper()
	w.wait("an update of "+name, func() bool {
		d := w.get(name)
		change(d)
		return w.c.Update(w.t.Context(), d) == nil
	})
}

func (w *world) get(name string) *v1alpha1.Deployment {
	w.t.Helper()
	d := &v1alpha1.Deployment{}
	if err := w.c.Get(w.t.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, d); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// status waits until the status of the current spec is as cond wants it.
func (w *world) status(name, what string, cond func(s v1alpha1.DeploymentStatus) bool) v1alpha1.DeploymentStatus {
	w.t.Helper()
	var last *v1alpha1.Deployment
	defer func() {
		if w.t.Failed() {
			text, _ := json.MarshalIndent(last.Status, "", " ")
			w.t.Logf("%s, generation %d: %s", name, last.Generation, text)
		}
	}()
	w.wait(name+": "+what, func() bool {
		last = w.get(name)
		return last.Status.ObservedGeneration == last.Generation && cond(last.Status)
	})
	return last.Status
}

// phase waits until the rollout stands there.
func (w *world) phase(name string, phase v1alpha1.RolloutPhase) v1alpha1.DeploymentStatus {
	w.t.Helper()
	return w.status(name, string(phase), func(s v1alpha1.DeploymentStatus) bool { return s.Phase == phase })
}

// complete waits until n devices run it.
func (w *world) complete(name string, n int32) v1alpha1.DeploymentStatus {
	w.t.Helper()
	return w.status(name, fmt.Sprintf("complete on %d", n), func(s v1alpha1.DeploymentStatus) bool {
		return s.Phase == v1alpha1.RolloutComplete && s.Ready == n
	})
}

// event waits for an event of a Deployment with that reason, and gives its message.
func (w *world) event(name, reason string) string {
	w.t.Helper()
	var message string
	w.wait("event "+reason+" of "+name, func() bool {
		var list corev1.EventList
		if err := w.c.List(w.t.Context(), &list, client.InNamespace(w.ns)); err != nil {
			w.t.Fatal(err)
		}
		i := slices.IndexFunc(list.Items, func(e corev1.Event) bool { return e.InvolvedObject.Name == name && e.Reason == reason })
		if i >= 0 {
			message = list.Items[i].Message
		}
		return i >= 0
	})
	return message
}

// document reads what the broker has for a device.
func (w *world) document(id string) (state command.DesiredState, owners map[string]string, revision uint64) {
	w.t.Helper()
	js, err := jetstream.New(w.broker.Data(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	stream, err := js.Stream(w.t.Context(), access.KVStream(command.DesiredStateBucket))
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := stream.GetLastMsgForSubject(w.t.Context(), command.DesiredStateSubject(id))
	if err != nil {
		return state, nil, 0
	}
	if state, err = command.DecodeDocument[command.DesiredState](m.Data); err != nil {
		w.t.Fatal(err)
	}
	if owners, err = command.DecodeOwners(m.Header.Get(command.HeaderOwners)); err != nil {
		w.t.Fatal(err)
	}
	return state, owners, m.Sequence
}

// put writes a desired state by hand, as `fleet desired put` does.
func (w *world) put(id string, deployments map[string]command.Score) {
	w.t.Helper()
	js, err := jetstream.New(w.broker.Data(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := json.Marshal(command.DesiredState{Schema: command.Schema, Deployments: deployments})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := js.PublishMsg(w.t.Context(), &nats.Msg{Subject: command.DesiredStateSubject(id), Data: data}); err != nil {
		w.t.Fatal(err)
	}
}

// device makes the Device object, as the device controller does.
func (w *world) device(id string, of map[string]string, paused bool) {
	w.t.Helper()
	d := &v1alpha1.Device{ObjectMeta: metav1.ObjectMeta{Name: id, Labels: map[string]string{v1alpha1.NamespaceLabel: w.ns}}}
	d.Spec.Paused, d.Spec.Labels = paused, map[string]v1alpha1.LabelValue{}
	for k, v := range of {
		d.Spec.Labels[k] = v1alpha1.LabelValue(v)
	}
	if err := w.c.Create(w.t.Context(), d); err != nil {
		w.t.Fatal(err)
	}
}

// with waits until those devices, and no others, have the deployment in their desired
// state.
func (w *world) with(name string, ids ...string) {
	w.t.Helper()
	w.wait(fmt.Sprintf("%s on %v", name, ids), func() bool {
		for _, id := range w.fleet.IDs() {
			state, _, _ := w.document(id)
			if _, has := state.Deployments[name]; has != slices.Contains(ids, id) {
				return false
			}
		}
		return true
	})
}

func number(n int32) *intstr.IntOrString { v := intstr.FromInt32(n); return &v }

func ptr[T any](v T) *T { return &v }

// podman is the score as it stands in a document.
func podman(t testing.TB, image string, ports ...string) command.Score {
	t.Helper()
	s, err := scoreOf(score(image, ports...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
}

// rawMerge is a merge patch as it stands.
func rawMerge(patch []byte) client.Patch { return client.RawPatch(types.MergePatchType, patch) }

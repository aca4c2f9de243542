package operator

import (
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/device"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// is tells whether a condition has that status and reason.
func is(condition string, status metav1.ConditionStatus, reason string) func(*v1alpha1.Device) bool {
	return func(d *v1alpha1.Device) bool {
		c := meta.FindStatusCondition(d.Status.Conditions, condition)
		return c != nil && c.Status == status && c.Reason == reason
	}
}

// world is a broker with devices whose ids are the test's own, and a namespace whose
// operator may do what it needs.
type world struct {
	kube  *kubetest.Server
	c     client.Client
	b     *fleettest.Broker
	ns    string
	fleet *fleettest.Fleet
	other *mirror.Mirror // writes labels as fleet label does
}

func newWorld(t *testing.T, devices int) *world {
	t.Helper()
	kube := kubetest.Shared(t)
	w := &world{kube: kube, c: kube.Client(t), ns: kube.Namespace(t), b: fleettest.StartBroker(t)}
	grant(t, w.c, w.ns, Rules(w.ns, []string{w.ns}))
	w.fleet = w.b.Fleet(t, fleettest.Options{Devices: devices, Prefix: w.ns + "-", Heartbeat: 200 * time.Millisecond})
	w.other = mirror.New(w.b.Data(t), mirror.Options{})
	return w
}

func TestDevicesAppearAndShowHowTheyAre(t *testing.T) {
	w := newWorld(t, 3)
	op := start(t, w.kube, w.b, w.ns, mirror.Options{HeartbeatTimeout: 5 * time.Second})
	ids := w.fleet.IDs()
	for _, id := range ids {
		d := awaitDevice(t, w.c, id, "is ready", is(v1alpha1.DeviceReady, metav1.ConditionTrue, v1alpha1.ReasonAsDesired))
		owners := d.OwnerReferences
		if len(owners) != 1 || owners[0].Kind != "Namespace" || owners[0].Name != w.ns || d.Labels[v1alpha1.NamespaceLabel] != w.ns {
			t.Errorf("%s: owners %v, labels %v", id, owners, d.Labels)
		}
		s := d.Status
		if !is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats)(d) || s.AgentVersion == "" || s.BootID == "" || s.Instance == "" ||
			s.Runtime != string(command.RuntimeReady) || s.Summary != "0/0" || s.LastHeartbeatTime == nil || s.ObservedGeneration != d.Generation {
			t.Errorf("%s: %+v", id, s)
		}
	}
	op.awaitReadyz(t, "200 OK")

	// What it runs.
	state := command.DesiredState{Deployments: map[string]command.Score{"web": {Type: command.ScorePodmanV0, Data: []byte(`{"services":[{"name":"web","image":"backoff"}]}`)}}}
	revision, err := w.other.Put(t.Context(), ids[1], 0, state, nil)
	if err != nil {
		t.Fatal(err)
	}
	awaitDevice(t, w.c, ids[1], "is not ready", is(v1alpha1.DeviceReady, metav1.ConditionFalse, v1alpha1.ReasonDeploymentsUnready))
	d := awaitDevice(t, w.c, ids[1], "shows its deployment", func(d *v1alpha1.Device) bool { return d.Status.Summary == "0/1" })
	web := d.Status.Deployments["web"]
	if web.Phase != string(command.PhaseBackoff) || web.Revision != int64(revision) || web.Services["web"] != web.Phase || !strings.Contains(web.Message, "no such image") {
		t.Errorf("%+v", web)
	}

	// Heartbeats write nothing.
	before := awaitDevice(t, w.c, ids[0], "is there", func(*v1alpha1.Device) bool { return true })
	seen, _ := w.mirrored(t, op, ids[0])
	testwait.For(t, patience, "more heartbeats", func() bool {
		now, _ := w.mirrored(t, op, ids[0])
		return now.LastHeartbeat.Sub(seen.LastHeartbeat) > time.Second
	})
	if after := awaitDevice(t, w.c, ids[0], "is there", func(*v1alpha1.Device) bool { return true }); after.ResourceVersion != before.ResourceVersion {
		t.Errorf("heartbeats made version %s of %s", after.ResourceVersion, before.ResourceVersion)
	}

	// It goes, and comes back.
	w.fleet.Leave(ids[0])
	d = awaitDevice(t, w.c, ids[0], "is offline", is(v1alpha1.DeviceOnline, metav1.ConditionFalse, v1alpha1.ReasonHeartbeatsLost))
	if !is(v1alpha1.DeviceReady, metav1.ConditionFalse, v1alpha1.ReasonOffline)(d) {
		t.Errorf("%+v", d.Status.Conditions)
	}
	w.fleet.Join(ids[0])
	awaitDevice(t, w.c, ids[0], "is back", is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats))
	w.awaitEvent(t, ids[0], device.EventRegistered)
	w.awaitEvent(t, ids[0], device.EventOffline)
	w.awaitEvent(t, ids[0], device.EventOnline)

	// It is deleted by hand.
	uid := d.UID
	if err := w.c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	awaitDevice(t, w.c, ids[0], "is made anew", func(d *v1alpha1.Device) bool {
		return d.UID != uid && is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats)(d)
	})

	text := op.get(t, "metrics", "/metrics")
	for _, want := range []string{`fleet_operator_devices{online="true",ready="true"} 2`, "fleet_operator_nats_connected 1", "fleet_operator_leader 1", "fleet_operator_foreign_devices 0", `controller_runtime_reconcile_total{controller="device"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no metric %s", want)
		}
	}
}

// mirrored is the device as the operator has it.
func (w *world) mirrored(t *testing.T, op *running, id string) (mirror.Device, bool) {
	t.Helper()
	op.state.mu.Lock()
	defer op.state.mu.Unlock()
	return op.state.mirror.Device(id)
}

func (w *world) awaitEvent(t *testing.T, id, reason string) {
	t.Helper()
	testwait.For(t, patience, "the event "+reason+" of "+id, func() bool {
		var list corev1.EventList
		if err := w.c.List(t.Context(), &list, client.InNamespace(metav1.NamespaceDefault)); err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == id && e.Reason == reason {
				return true
			}
		}
		return false
	})
}

func TestLabelsAreTheSameOnBothSides(t *testing.T) {
	w := newWorld(t, 1)
	id := w.fleet.IDs()[0]
	put := func(labels map[string]string) {
		t.Helper()
		testwait.For(t, patience, "the labels to be written", func() bool {
			d, _ := w.other.Device(id)
			_, err := w.other.PutLabels(t.Context(), id, d.LabelsRevision, labels)
			return err == nil
		})
	}
	w.run(t)
	put(map[string]string{"site": "lab"})
	start(t, w.kube, w.b, w.ns, mirror.Options{})
	settled := func(labels map[string]string) func(*v1alpha1.Device) bool {
		return func(d *v1alpha1.Device) bool {
			spec := map[string]string{}
			for k, v := range d.Spec.Labels {
				spec[k] = string(v)
			}
			mirrored, _ := w.other.Device(id)
			return maps.Equal(spec, labels) && maps.Equal(mirrored.Labels, labels) && d.Status.LabelsRevision == int64(mirrored.LabelsRevision) && d.Status.ObservedGeneration == d.Generation
		}
	}
	d := awaitDevice(t, w.c, id, "begins with the broker's labels", settled(map[string]string{"site": "lab"}))
	if d.Labels["site"] != "lab" {
		t.Errorf("metadata has %v", d.Labels)
	}

	// kubectl edit, and a label of somebody else's beside.
	base := d.DeepCopy()
	d.Spec.Labels = map[string]v1alpha1.LabelValue{"rack": "4", "team": "ours"}
	d.Labels["team"] = "theirs"
	if err := w.c.Patch(t.Context(), d, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	awaitDevice(t, w.c, id, "has its labels in the broker", settled(map[string]string{"rack": "4", "team": "ours"}))
	d = awaitDevice(t, w.c, id, "shows them", func(d *v1alpha1.Device) bool { return d.Labels["rack"] == "4" })
	if _, ok := d.Labels["site"]; ok || d.Labels["team"] != "theirs" || d.Labels[v1alpha1.NamespaceLabel] != w.ns {
		t.Errorf("metadata has %v", d.Labels)
	}

	// fleet label.
	put(map[string]string{"rack": "5"})
	awaitDevice(t, w.c, id, "takes them from the broker", settled(map[string]string{"rack": "5"}))
	d = awaitDevice(t, w.c, id, "shows them", func(d *v1alpha1.Device) bool { return d.Labels["rack"] == "5" && d.Labels["team"] == "theirs" })

	// Deleted by hand, it has the broker's again; without its label, it gets that back.
	if err := w.c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	d = awaitDevice(t, w.c, id, "is made anew", func(n *v1alpha1.Device) bool {
		return n.UID != d.UID && settled(map[string]string{"rack": "5"})(n)
	})
	base = d.DeepCopy()
	delete(d.Labels, v1alpha1.NamespaceLabel)
	if err := w.c.Patch(t.Context(), d, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	awaitDevice(t, w.c, id, "has its label again", func(d *v1alpha1.Device) bool { return d.Labels[v1alpha1.NamespaceLabel] == w.ns })

	// What the API server would refuse does not keep the device away, nor harm it.
	put(map[string]string{"bad key": "x"})
	w.awaitEvent(t, id, device.EventLabelsInvalid)
	awaitDevice(t, w.c, id, "keeps its labels", func(d *v1alpha1.Device) bool { return d.Spec.Labels["rack"] == "5" && len(d.Spec.Labels) == 1 })
}

// run runs the second mirror.
func (w *world) run(t *testing.T) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- w.other.Start(t.Context()) }()
	t.Cleanup(func() { <-done }) // the context has ended by now
	select {
	case <-w.other.Synced():
	case <-time.After(patience):
		t.Fatal(w.other.NotCurrent())
	}
}

func TestObjectsOfOthersAreLeftAlone(t *testing.T) {
	w := newWorld(t, 2)
	ids := w.fleet.IDs()
	// One without an owner, and one of another operator's.
	for i, owners := range [][]metav1.OwnerReference{nil, {{APIVersion: "v1", Kind: "Namespace", Name: "other", UID: "other"}}} {
		d := &v1alpha1.Device{ObjectMeta: metav1.ObjectMeta{Name: ids[i], OwnerReferences: owners, Labels: map[string]string{v1alpha1.NamespaceLabel: w.ns}}}
		if i == 0 {
			d.Labels = nil
		}
		if err := w.c.Create(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	op := start(t, w.kube, w.b, w.ns, mirror.Options{})
	testwait.For(t, patience, "both to be counted", func() bool {
		return strings.Contains(op.get(t, "metrics", "/metrics"), "fleet_operator_foreign_devices 2")
	})
	for _, id := range ids {
		d := awaitDevice(t, w.c, id, "is there", func(*v1alpha1.Device) bool { return true })
		if len(d.Status.Conditions) > 0 || d.Generation != 1 || len(d.Annotations) > 0 {
			t.Errorf("%s was touched: %+v", id, d)
		}
	}
}

func TestWhileTheBrokerIsAwayNothingIsCertain(t *testing.T) {
	w := newWorld(t, 2)
	op := start(t, w.kube, w.b, w.ns, mirror.Options{HeartbeatTimeout: 5 * time.Second, AwayAfter: 200 * time.Millisecond})
	ids := w.fleet.IDs()
	for _, id := range ids {
		awaitDevice(t, w.c, id, "is online", is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats))
	}
	w.b.Stop()
	for _, id := range ids {
		awaitDevice(t, w.c, id, "is uncertain", is(v1alpha1.DeviceOnline, metav1.ConditionUnknown, v1alpha1.ReasonBrokerAway))
	}
	op.awaitReadyz(t, "not connected to NATS")
	// Another that starts now says the same, and of objects that it did not see live.
	op.stop()
	base := awaitDevice(t, w.c, ids[0], "is there", func(*v1alpha1.Device) bool { return true })
	d := base.DeepCopy()
	meta.SetStatusCondition(&d.Status.Conditions, metav1.Condition{Type: v1alpha1.DeviceOnline, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonHeartbeats})
	if err := w.c.Status().Patch(t.Context(), d, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	op = start(t, w.kube, w.b, w.ns, mirror.Options{HeartbeatTimeout: 5 * time.Second, AwayAfter: 200 * time.Millisecond})
	awaitDevice(t, w.c, ids[0], "is uncertain again", is(v1alpha1.DeviceOnline, metav1.ConditionUnknown, v1alpha1.ReasonBrokerAway))
	w.b.Start(t)
	for _, id := range ids {
		awaitDevice(t, w.c, id, "is online again", is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats))
	}
	op.awaitReadyz(t, "200 OK")
}

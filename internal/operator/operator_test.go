package operator

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

func TestWhatIsMissingIsNamedAndWaitedFor(t *testing.T) {
	kube := kubetest.Start(t)
	c := kube.Client(t)
	ns := kube.Namespace(t)
	b := fleettest.StartBroker(t)
	fleet := b.Fleet(t, fleettest.Options{Devices: 1})
	op := start(t, kube, b, ns, mirror.Options{})

	op.awaitReadyz(t, "no definition of devices.fleet.harmony.dev and deployments.fleet.harmony.dev in version v1alpha1; install them: kubectl apply --server-side -f deploy/crds")
	if got := op.get(t, "health", "/healthz"); !strings.HasPrefix(got, "200") {
		t.Errorf("/healthz: %s", got)
	}
	if err := kube.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	op.awaitReadyz(t, "missing: verbs get on resource namespaces named "+ns)
	op.awaitReadyz(t, "verbs get, list, watch, create, patch on resource devices of group fleet.harmony.dev in the whole cluster")

	// All but one verb.
	rules := Rules(ns, []string{ns})
	for i, r := range rules {
		if r.Resource == "devices/status" {
			rules[i].Verbs = []string{"get"}
		}
	}
	grant(t, c, ns, rules)
	op.awaitReadyz(t, "missing: verbs patch on resource devices/status of group fleet.harmony.dev in the whole cluster")
	clusterRole(t, c, ns, Rules(ns, nil))
	op.awaitReadyz(t, "200 OK")
	awaitDevice(t, c, fleet.IDs()[0], "is ready", is(v1alpha1.DeviceReady, metav1.ConditionTrue, v1alpha1.ReasonAsDesired))
}

func TestOfTwoReplicasOneLeadsAndTheOtherTakesOver(t *testing.T) {
	w := newWorld(t, 1)
	id := w.fleet.IDs()[0]
	first := start(t, w.kube, w.b, w.ns, mirror.Options{})
	awaitDevice(t, w.c, id, "is online", is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats))
	second := start(t, w.kube, w.b, w.ns, mirror.Options{})
	second.awaitReadyz(t, "200 OK")
	if got := second.get(t, "metrics", "/metrics"); !strings.Contains(got, "fleet_operator_leader 0") {
		t.Error("both lead")
	}
	first.stop()
	d := awaitDevice(t, w.c, id, "is there", func(*v1alpha1.Device) bool { return true })
	if err := w.c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	awaitDevice(t, w.c, id, "is made by the other", func(n *v1alpha1.Device) bool { return n.UID != d.UID })
	if got := second.get(t, "metrics", "/metrics"); !strings.Contains(got, "fleet_operator_leader 1") {
		t.Error("nobody leads")
	}
}

// Two operators in one cluster, each with its broker, have nothing of each other.
func TestTwoFleetsInOneClusterNeverMeet(t *testing.T) {
	one, two := newWorld(t, 2), newWorld(t, 2)
	for _, w := range []*world{one, two} {
		start(t, w.kube, w.b, w.ns, mirror.Options{})
	}
	for _, w := range []*world{one, two} {
		for _, id := range w.fleet.IDs() {
			d := awaitDevice(t, w.c, id, "is online", is(v1alpha1.DeviceOnline, metav1.ConditionTrue, v1alpha1.ReasonHeartbeats))
			if d.OwnerReferences[0].Name != w.ns {
				t.Errorf("%s belongs to %v", id, d.OwnerReferences)
			}
		}
	}
}

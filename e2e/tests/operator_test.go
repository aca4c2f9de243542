package tests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/e2e"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// patience is how long a test waits for what should happen soon.
const patience = 90 * time.Second

// kubernetes is the cluster, as somebody with kubectl has it.
type kubernetes struct {
	client.Client
	t         *testing.T
	namespace string
}

func newKubernetes(t *testing.T, stack *e2e.Stack) kubernetes {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", stack.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	_, done, err := kubeapi.Client(config) // whose end is that of all clients of config
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return kubernetes{Client: c, t: t, namespace: stack.Namespace}
}

// eventually waits until cond holds, and says what was seen where it does not.
func eventually(t *testing.T, what string, cond func() (ok bool, seen string)) {
	t.Helper()
	seen := ""
	defer func() {
		if t.Failed() && seen != "" {
			t.Logf("last seen: %s", seen)
		}
	}()
	testwait.For(t, patience, what, func() (ok bool) {
		ok, seen = cond()
		return ok
	})
	seen = ""
}

func (k kubernetes) devices() []v1alpha1.Device {
	k.t.Helper()
	var list v1alpha1.DeviceList
	if err := k.List(k.t.Context(), &list, client.MatchingLabels{v1alpha1.NamespaceLabel: k.namespace}); err != nil {
		k.t.Fatal(err)
	}
	return list.Items
}

func (k kubernetes) deployment(name string) (v1alpha1.Deployment, error) {
	var d v1alpha1.Deployment
	err := k.Get(k.t.Context(), client.ObjectKey{Namespace: k.namespace, Name: name}, &d)
	return d, err
}

// awaitStatus waits until the Deployment's status speaks of its spec and fits.
func (k kubernetes) awaitStatus(name, what string, fits func(s v1alpha1.DeploymentStatus) bool) v1alpha1.Deployment {
	k.t.Helper()
	var d v1alpha1.Deployment
	eventually(k.t, name+" to be "+what, func() (bool, string) {
		var err error
		if d, err = k.deployment(name); err != nil {
			return false, err.Error()
		}
		seen, _ := json.Marshal(d.Status)
		return d.Status.ObservedGeneration == d.Generation && fits(d.Status), string(seen)
	})
	return d
}

func (k kubernetes) apply(name string, edit func(*v1alpha1.Deployment)) {
	k.t.Helper()
	d := v1alpha1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name}}
	edit(&d)
	if err := k.Create(k.t.Context(), &d); err != nil {
		k.t.Fatal(err)
	}
}

// change edits the spec, again where somebody else wrote meanwhile.
func (k kubernetes) change(name string, edit func(*v1alpha1.DeploymentSpec)) {
	k.t.Helper()
	eventually(k.t, "change of "+name, func() (bool, string) {
		d, err := k.deployment(name)
		if err == nil {
			edit(&d.Spec)
			err = k.Update(k.t.Context(), &d)
		}
		if err != nil && !apierrors.IsConflict(err) {
			k.t.Fatal(err)
		}
		return err == nil, fmt.Sprint(err)
	})
}

func (k kubernetes) awaitGone(name string) {
	k.t.Helper()
	eventually(k.t, "the end of "+name, func() (bool, string) {
		d, err := k.deployment(name)
		seen, _ := json.Marshal(d.Status)
		return apierrors.IsNotFound(err), string(seen)
	})
}

func score(image, text, port string) v1alpha1.Score {
	return v1alpha1.Score{Type: "PodmanV0", Data: v1alpha1.ScoreData{Services: []v1alpha1.Service{{
		Name: "web", Image: image, Pull: "never", Command: []string{"serve", text}, Ports: []string{port + ":80"},
	}}}}
}

func online(d v1alpha1.Device) bool {
	return meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.DeviceOnline)
}

func awaitDevices(t *testing.T, k kubernetes, ids []string) {
	t.Helper()
	eventually(t, "every device to be online", func() (bool, string) {
		var names []string
		for _, d := range k.devices() {
			if online(d) && len(d.OwnerReferences) == 1 && d.OwnerReferences[0].Name == k.namespace && d.Status.AgentVersion != "" {
				names = append(names, d.Name)
			}
		}
		slices.Sort(names)
		return slices.Equal(names, ids), fmt.Sprint(names)
	})
}

// TestDeploymentsInKubernetes is the life of a Deployment: one device of three has a
// container engine, and the Pods' agents have none.
func TestDeploymentsInKubernetes(t *testing.T) {
	const image = "localhost/hello:1"
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			e2e.Require(t)
			podman := podmantest.Start(t)
			podman.Image(t, image)
			stack := e2e.New(t, e2e.Options{
				AuthMode: mode, NumDevices: 3, Components: []e2e.Component{e2e.Operator()},
				AgentTarget: e2e.Mixed{OnHost: 1, Host: e2e.Host{RuntimeSocket: podman.Socket}},
			})
			k := newKubernetes(t, stack)
			awaitDevices(t, k, stack.DeviceIDs)

			serves := func(port, text string) {
				t.Helper()
				eventually(t, "the container to answer "+text, func() (bool, string) {
					got, err := podman.Get("http://127.0.0.1:" + port + "/")
					return err == nil && got == text, fmt.Sprintf("%q, %v", got, err)
				})
			}
			// On the device with an engine it goes ready.
			k.apply("one", func(d *v1alpha1.Deployment) {
				deadline := int32(20)
				d.Spec.Selector.Names = stack.DeviceIDs[:1]
				d.Spec.Score = score(image, "first", "18080")
				d.Spec.Rollout.ProgressDeadlineSeconds = &deadline
			})
			d := k.awaitStatus("one", "complete", func(s v1alpha1.DeploymentStatus) bool {
				return s.Phase == v1alpha1.RolloutComplete && s.Matched == 1 && s.Updated == 1 && s.Ready == 1
			})
			if d.Status.Revision != 1 || !meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.DeploymentAvailable) {
				t.Errorf("%+v", d.Status)
			}
			serves("18080", "first")

			// Devices without an engine are not ready, whatever happens, and stop the rollout.
			k.apply("all", func(d *v1alpha1.Deployment) {
				deadline, batch := int32(3), intstr.FromString("100%")
				d.Spec.Selector.All = true
				d.Spec.Score = score(image, "everywhere", "18081")
				d.Spec.Rollout.ProgressDeadlineSeconds, d.Spec.Rollout.BatchSize = &deadline, &batch
			})
			d = k.awaitStatus("all", "stopped", func(s v1alpha1.DeploymentStatus) bool {
				return s.Phase == v1alpha1.RolloutStopped && s.Matched == 3 && s.Failed == 2 && s.Ready == 1
			})
			for _, f := range d.Status.Failures {
				if f.Device == stack.DeviceIDs[0] || f.Phase == "" {
					t.Errorf("failure %+v", f)
				}
			}

			// A bad score stops, says so, and is undone with one field.
			k.change("one", func(s *v1alpha1.DeploymentSpec) { s.Score = score("localhost/absent:1", "second", "18080") })
			d = k.awaitStatus("one", "stopped by the bad score", func(s v1alpha1.DeploymentStatus) bool {
				return s.Phase == v1alpha1.RolloutStopped && s.Failed == 1 && len(s.Failures) == 1
			})
			if f := d.Status.Failures[0]; f.Device != stack.DeviceIDs[0] || f.Message == "" {
				t.Errorf("failure %+v", f)
			}
			k.change("one", func(s *v1alpha1.DeploymentSpec) { s.RollbackTo = new(int64) })
			d = k.awaitStatus("one", "complete again", func(s v1alpha1.DeploymentStatus) bool {
				return s.Phase == v1alpha1.RolloutComplete && s.Ready == 1 && s.Revision == 3
			})
			if d.Spec.RollbackTo != nil || d.Spec.Score.Data.Services[0].Image != image {
				t.Errorf("after the undo: %+v", d.Spec)
			}
			serves("18080", "first")

			for _, name := range []string{"one", "all"} {
				if err := k.Delete(t.Context(), &v1alpha1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name}}); err != nil {
					t.Fatal(err)
				}
			}
			k.awaitGone("one")
			k.awaitGone("all")
			if out, err := podman.Run("ps", "--all", "--quiet"); err != nil || strings.TrimSpace(out) != "" {
				t.Errorf("containers are left: %q, %v", out, err)
			}
		})
	}
}

// TestTwoStacksNeverMeet: operators of two namespaces in one cluster each keep to their
// own devices and Deployments, and the end of one is nothing to the other.
func TestTwoStacksNeverMeet(t *testing.T) {
	e2e.Require(t)
	var stacks []*e2e.Stack
	var kube []kubernetes
	for range 2 {
		stack := e2e.New(t, e2e.Options{Components: []e2e.Component{e2e.Operator()}})
		stacks, kube = append(stacks, stack), append(kube, newKubernetes(t, stack))
	}
	for i, k := range kube {
		awaitDevices(t, k, stacks[i].DeviceIDs)
	}
	kube[0].apply("all", func(d *v1alpha1.Deployment) {
		deadline := int32(1)
		d.Spec.Selector.All = true
		d.Spec.Score = score("localhost/hello:1", "x", "18082")
		d.Spec.Rollout.ProgressDeadlineSeconds = &deadline
	})
	kube[0].awaitStatus("all", "stopped", func(s v1alpha1.DeploymentStatus) bool {
		return s.Phase == v1alpha1.RolloutStopped && s.Matched == 1
	})
	for _, d := range kube[1].devices() {
		if len(d.Status.Deployments) > 0 {
			t.Errorf("%s was told to run %v", d.Name, d.Status.Deployments)
		}
	}
	if err := stacks[0].Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first stack's devices to go with its namespace", func() (bool, string) {
		left := kube[0].devices()
		return len(left) == 0, fmt.Sprintf("%d", len(left))
	})
	awaitDevices(t, kube[1], stacks[1].DeviceIDs)
}

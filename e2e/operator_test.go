package e2e

import (
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// namespaceGone is how long a cluster takes to remove a namespace: its controller
// itself waits 5 s before it looks whether anything is left.
const namespaceGone = 60 * time.Second

// heldDeployment makes a Deployment whose finalizer nobody removes.
func heldDeployment(t *testing.T, kube kubernetes.Interface, namespace string) {
	t.Helper()
	if err := installCRDs(t.Context(), kube); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/apis/%s/namespaces/%s/deployments", v1alpha1.GroupVersion, namespace)
	body := fmt.Sprintf(`{"apiVersion":%q,"kind":"Deployment","metadata":{"name":"held","finalizers":[%q]},
		"spec":{"selector":{"all":true},"score":{"type":"PodmanV0","data":{"services":[{"name":"web","image":"localhost/hello:1"}]}}}}`, v1alpha1.GroupVersion, v1alpha1.Finalizer)
	if _, err := kube.CoreV1().RESTClient().Post().AbsPath(path).Body([]byte(body)).DoRaw(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func wantNamespaceGone(t *testing.T, kube kubernetes.Interface, name string) {
	t.Helper()
	testwait.For(t, namespaceGone, "the end of namespace "+name, func() bool {
		_, err := kube.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

func TestCloseReleasesDeployments(t *testing.T) {
	kube, _ := kubeOf(t)
	s := New(t, Options{AuthMode: UserPass})
	heldDeployment(t, kube, s.Namespace)
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > closeLimit {
		t.Errorf("Close took %v", took)
	}
	wantNamespaceGone(t, kube, s.Namespace)
}

func TestTheSweepReleasesDeployments(t *testing.T) {
	kube, _ := kubeOf(t)
	for _, ending := range []bool{false, true} {
		t.Run(fmt.Sprintf("namespace ending %v", ending), func(t *testing.T) {
			h := startHelper(t, "wait")
			heldDeployment(t, kube, h.namespace)
			if ending {
				if err := kube.CoreV1().Namespaces().Delete(t.Context(), h.namespace, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			h.wait(t)
			New(t, Options{AuthMode: UserPass})
			wantNamespaceGone(t, kube, h.namespace)
		})
	}
}

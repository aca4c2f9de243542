package e2e

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) {
	if part := os.Getenv(helperVariable); part != "" {
		os.Exit(m.Run()) // see helper_test.go; it may end in any way
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what should happen soon.
const patience = 60 * time.Second

// Limits of what is quick, on a busy machine too; docs/performance.md has what is
// wanted, and measured.
const (
	closeLimit = 3 * time.Second // less than the cluster takes to remove a namespace
	podsGone   = 10 * time.Second
)

// inEachMode runs a test in both ways to sign in, at once: most of what a stack takes
// is waiting. Environment variables are for the caller to set.
func inEachMode(t *testing.T, test func(t *testing.T, mode AuthMode)) {
	for _, mode := range []AuthMode{UserPass, Callout} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			test(t, mode)
		})
	}
}

// inEachModeInTurn is for tests that also keep a container engine busy.
func inEachModeInTurn(t *testing.T, test func(t *testing.T, mode AuthMode)) {
	for _, mode := range []AuthMode{UserPass, Callout} {
		t.Run(string(mode), func(t *testing.T) { test(t, mode) })
	}
}

// kubeOf gives a client of the cluster that tests run on.
func kubeOf(t *testing.T) (*kubeClient, cluster.Cluster) {
	t.Helper()
	Require(t)
	opts := Options{Progress: os.Stderr}
	if err := opts.setDefaults(); err != nil {
		t.Fatal(err)
	}
	provider, err := selectProvider(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	c, err := provider.Up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kube, err := newKubeClient(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kube.close)
	return kube, c
}

// podsOf are the names of the Pods in a namespace, none where it is gone.
func podsOf(t *testing.T, kube *kubeClient, namespace string) []string {
	t.Helper()
	list, err := kube.CoreV1().Pods(namespace).List(context.WithoutCancel(t.Context()), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range list.Items {
		names = append(names, p.Name)
	}
	return names
}

// ending tells whether a namespace is gone or on its way.
func ending(t *testing.T, kube *kubeClient, namespace string) bool {
	t.Helper()
	ns, err := kube.CoreV1().Namespaces().Get(context.WithoutCancel(t.Context()), namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return ns.Status.Phase == corev1.NamespaceTerminating
}

// wantGone fails the test unless namespace and Pods end within d.
func wantGone(t *testing.T, kube *kubeClient, namespace string, d time.Duration) {
	t.Helper()
	testwait.For(t, d, "the end of namespace "+namespace+" and its Pods", func() bool {
		return ending(t, kube, namespace) && len(podsOf(t, kube, namespace)) == 0
	})
}

// ourNamespaces are those of stacks of this process that are not ending.
func ourNamespaces(t *testing.T, kube *kubeClient) []string {
	t.Helper()
	list, err := kube.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{LabelSelector: labelStack + "=true"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, ns := range list.Items {
		if ns.Status.Phase != corev1.NamespaceTerminating && ns.Annotations[annotationOwner] == owner() {
			names = append(names, ns.Name)
		}
	}
	slices.Sort(names)
	return names
}

// given is a provider of a cluster that is there.
type given struct {
	cluster.Cluster
	kubeconfig string   // in place of the cluster's
	nodes      []string // in place of the cluster's
}

func (given) Name() string                                  { return "given" }
func (g given) Up(context.Context) (cluster.Cluster, error) { return g, nil }
func (given) Down(context.Context) error                    { return nil }

func (g given) Kubeconfig() string {
	if g.kubeconfig != "" {
		return g.kubeconfig
	}
	return g.Cluster.Kubeconfig()
}

func (g given) NodeAddresses() []string {
	if g.nodes != nil {
		return g.nodes
	}
	return g.Cluster.NodeAddresses()
}

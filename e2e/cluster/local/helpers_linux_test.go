package local

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/harmony-fleet/fleet/e2e/cluster/internal/testslot"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// testOptions describe a cluster beside the one that people use, and beside those
// of other runs of these tests.
func testOptions() Options {
	slot := testslot.Take()
	return Options{Dir: slot.Dir, Name: slot.Name, Network: slot.Network, Progress: os.Stderr}
}

// handOn is the environment variable by which a process that a test starts has the
// same cluster.
func handOn() string { return fmt.Sprintf("%s=%d", testslot.Variable, testslot.Take().Number) }

// needCluster skips the test where no cluster is wanted.
func needCluster(tb testing.TB) {
	tb.Helper()
	if os.Getenv("HARMONY_FLEET_E2E") != "1" {
		tb.Skip("needs root, containerd and some minutes: set HARMONY_FLEET_E2E=1")
	}
}

// up starts the test's cluster and takes it down at the test's end.
func up(tb testing.TB) *Cluster {
	tb.Helper()
	provider := New(testOptions())
	tb.Cleanup(func() {
		// The supervisor is this binary, race detector included, and nobody sees what
		// it writes.
		if log, err := os.ReadFile(layout{testOptions().Dir}.log("supervisor")); err == nil && len(log) > 0 {
			tb.Errorf("the supervisor complains: %s", log)
		}
		if err := provider.Down(context.Background()); err != nil {
			tb.Errorf("down: %v", err)
		}
	})
	c, err := provider.Up(context.Background())
	if err != nil {
		tb.Fatalf("up: %v", err)
	}
	return c.(*Cluster)
}

func clientOf(tb testing.TB, c *Cluster) kubernetes.Interface {
	tb.Helper()
	client, done, err := c.client()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(done)
	return client
}

// probeImage builds the image that the tests run.
func probeImage(tb testing.TB) *image.Image {
	tb.Helper()
	images, err := image.Build(context.Background(), image.Options{}, image.Program{Name: "probe", Package: "./testdata/probe"})
	if err != nil {
		tb.Fatal(err)
	}
	return images[0]
}

// namespace makes one that enforces the restricted Pod Security level.
func namespace(tb testing.TB, client kubernetes.Interface) string {
	tb.Helper()
	ns, err := client.CoreV1().Namespaces().Create(tb.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "probe-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	// One of the namespace's own: nothing waits for a controller to make "default".
	if _, err := client.CoreV1().ServiceAccounts(ns.Name).Create(tb.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "probe"}}, metav1.CreateOptions{}); err != nil {
		tb.Fatal(err)
	}
	return ns.Name
}

// probePod makes a Pod of the probe and waits until it is ready.
func probePod(tb testing.TB, client kubernetes.Interface, namespace, name, ref string) {
	tb.Helper()
	yes, no := true, false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64),
			ServiceAccountName:            "probe",
			AutomountServiceAccountToken:  &no,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   &yes,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "probe", Image: ref,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no,
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}},
					PeriodSeconds: 1,
				},
			}},
		},
	}
	if _, err := client.CoreV1().Pods(namespace).Create(tb.Context(), pod, metav1.CreateOptions{}); err != nil {
		tb.Fatal(err)
	}
	awaitPod(tb, client, namespace, name)
}

func awaitPod(tb testing.TB, client kubernetes.Interface, namespace, name string) {
	tb.Helper()
	testwait.For(tb, 30*time.Second, "Pod "+name+" ready", func() bool {
		pod, err := client.CoreV1().Pods(namespace).Get(tb.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false // the API server may be the part that was killed
		}
		return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
}

// probeService gives the Pod a Service with a NodePort.
func probeService(tb testing.TB, client kubernetes.Interface, namespace, name, pod string) *corev1.Service {
	tb.Helper()
	service, err := client.CoreV1().Services(namespace).Create(tb.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type:     corev1.ServiceTypeNodePort,
			Selector: map[string]string{"app": pod},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return service
}

func get(url string) (string, error) {
	client := http.Client{Timeout: 6 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

// awaitGet gets the page until it is want.
func awaitGet(tb testing.TB, url, want string) {
	tb.Helper()
	var got string
	var err error
	defer func() {
		if tb.Failed() {
			tb.Logf("last answer of %s: %q, %v", url, got, err)
		}
	}()
	testwait.For(tb, 15*time.Second, url, func() bool {
		got, err = get(url)
		return err == nil && got == want
	})
}

package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/internal/testslot"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestPodsRunAndAreReached(t *testing.T) {
	needCluster(t)
	c := up(t)
	client := clientOf(t, c)
	img := probeImage(t)
	if err := c.LoadImages(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.LoadImages(t.Context(), unreadable{img}); err != nil {
		t.Fatal(err)
	}
	t.Logf("loading an image that is there took %v", time.Since(begin))

	ns := namespace(t, client)
	begin = time.Now()
	service := probeService(t, client, ns, "front", "web")
	probePod(t, client, ns, "web", img.Ref())
	t.Logf("Pod ready after %v", time.Since(begin))

	const hello = "hello from uid 65532"
	nodePort := fmt.Sprintf("http://%s:%d", c.NodeAddresses()[0], service.Spec.Ports[0].NodePort)
	t.Run("NodePort", func(t *testing.T) { awaitGet(t, nodePort, hello) })
	t.Run("ClusterIP from this machine", func(t *testing.T) { awaitGet(t, "http://"+service.Spec.ClusterIP, hello) })
	t.Run("Service by name from a Pod", func(t *testing.T) {
		awaitGet(t, nodePort+"/lookup?name=front."+ns+".svc.cluster.local", service.Spec.ClusterIP)
		awaitGet(t, nodePort+"/lookup?name=front", service.Spec.ClusterIP)
	})
	t.Run("Service from its own Pod", func(t *testing.T) { awaitGet(t, nodePort+"/fetch?url=http://front", hello) })
	t.Run("this machine from a Pod", func(t *testing.T) {
		awaitGet(t, nodePort+"/fetch?url="+nodePort, hello)
	})
	t.Run("logs", func(t *testing.T) {
		content, err := client.CoreV1().Pods(ns).GetLogs("web", &corev1.PodLogOptions{}).DoRaw(t.Context())
		if err != nil || string(content) != "probe listens\n" {
			t.Errorf("got %q, %v", content, err)
		}
	})
	t.Run("exec", func(t *testing.T) {
		config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		request := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name("web").SubResource("exec").
			VersionedParams(&corev1.PodExecOptions{Command: []string{"/probe", "a", "b"}, Stdout: true}, scheme.ParameterCodec)
		executor, err := remotecommand.NewWebSocketExecutor(config, "GET", request.URL().String())
		if err != nil {
			t.Fatal(err)
		}
		var stdout bytes.Buffer
		if err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout}); err != nil || stdout.String() != "a b\n" {
			t.Errorf("got %q, %v", stdout.String(), err)
		}
	})
	t.Run("restricted level is enforced", func(t *testing.T) {
		_, err := client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "root"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: img.Ref()}}},
		}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "restricted") {
			t.Errorf("got %v", err)
		}
	})
}

// unreadable is an image that can only be looked for.
type unreadable struct{ cluster.Image }

func (unreadable) WriteArchive(io.Writer) error {
	return errors.New("it is there and was asked for")
}

func TestDownLeavesNothing(t *testing.T) {
	needCluster(t)
	before := traces(t)
	c := up(t)
	client := clientOf(t, c)
	img := probeImage(t)
	if err := c.LoadImages(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, client)
	probePod(t, client, ns, "web", img.Ref())
	if len(traces(t)) == len(before) {
		t.Fatal("a running cluster leaves no traces: the test does not see them")
	}
	begin := time.Now()
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("down after %v", time.Since(begin))
	compareTraces(t, before)
	if err := c.Down(t.Context()); err != nil {
		t.Errorf("down again: %v", err)
	}
}

func TestKilledSupervisorLeavesNothingThatIsInTheWay(t *testing.T) {
	needCluster(t)
	before := traces(t)
	c := up(t)
	client := clientOf(t, c)
	img := probeImage(t)
	if err := c.LoadImages(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	probePod(t, client, namespace(t, client), "web", img.Ref())
	s, err := readStatus(c.layout)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, 10*time.Second, "processes ended", func() bool { return len(processes(t)) == 0 })
	testwait.For(t, 10*time.Second, "status says killed", func() bool {
		status, err := New(testOptions()).Status(t.Context())
		return err == nil && status.State == StateKilled
	})
	again := up(t)
	if err := again.LoadImages(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	client = clientOf(t, again)
	probePod(t, client, namespace(t, client), "web", img.Ref())
	if err := again.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	compareTraces(t, before)
}

func TestKilledPartsComeBack(t *testing.T) {
	needCluster(t)
	c := up(t)
	client := clientOf(t, c)
	img := probeImage(t)
	if err := c.LoadImages(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, client)
	probePod(t, client, ns, "before", img.Ref())
	service := probeService(t, client, ns, "front", "before")
	url := fmt.Sprintf("http://%s:%d", c.NodeAddresses()[0], service.Spec.Ports[0].NodePort)
	awaitGet(t, url, "hello from uid 65532")
	for _, part := range readComponents(c.layout) {
		t.Run(part.Name, func(t *testing.T) {
			killPart(t, c, part.Name)
			testwait.For(t, 20*time.Second, part.Name+" started again", func() bool {
				return slices.ContainsFunc(readComponents(c.layout), func(s ComponentStatus) bool {
					return s.Name == part.Name && s.Restarts > part.Restarts && s.PID != 0
				})
			})
			// Up looks whether the cluster is whole, and does not start another.
			if _, err := New(testOptions()).Up(t.Context()); err != nil {
				t.Fatal(err)
			}
			name := "after-" + part.Name
			var err error
			testwait.For(t, 20*time.Second, "a Pod can be made", func() bool {
				_, err = client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
				return err == nil
			})
			probePod(t, client, ns, name, img.Ref())
			awaitGet(t, url, "hello from uid 65532")
			awaitGet(t, url+"/lookup?name=front", service.Spec.ClusterIP)
		})
	}
}

// killPart kills the process of a component, which is known by its number inside
// the node only.
func killPart(tb testing.TB, c *Cluster, name string) {
	tb.Helper()
	for _, p := range processes(tb) {
		component := filepath.Base(p.args[0])
		if component == "kube" && len(p.args) > 1 {
			component = p.args[1]
		}
		if component == name {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
				tb.Fatal(err)
			}
			return
		}
	}
	tb.Fatalf("no process of %s", name)
}

// TestMain also is the process that starts the cluster in TestTwoUpsAtOnce.
func TestMain(m *testing.M) {
	if os.Getenv("FLEET_TEST_UP") == "1" {
		provider := New(testOptions())
		_, err := provider.Up(context.Background())
		if err == nil {
			var s Status
			if s, err = provider.Status(context.Background()); err == nil {
				err = json.NewEncoder(os.Stdout).Encode(s)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	testslot.Release()
	os.Exit(code)
}

// TestKilledUpIsNotInTheWay kills the process that starts a cluster at several
// points of the start, and starts the cluster after that.
func TestKilledUpIsNotInTheWay(t *testing.T) {
	needCluster(t)
	before := traces(t)
	for _, after := range []time.Duration{60 * time.Millisecond, 250 * time.Millisecond, time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "FLEET_TEST_UP=1", handOn())
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // it may have ended
			_ = cmd.Wait()                                                   // "killed"
			kill.Stop()
			c := up(t)
			if err := c.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			compareTraces(t, before)
		})
	}
}

func TestTwoUpsAtOnceGiveOneCluster(t *testing.T) {
	needCluster(t)
	t.Cleanup(func() {
		if err := New(testOptions()).Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	type result struct {
		status Status
		err    error
	}
	results := make(chan result)
	for range 3 {
		go func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "FLEET_TEST_UP=1", handOn())
			cmd.Stderr = os.Stderr
			output, err := cmd.Output()
			var s Status
			if err == nil {
				err = json.Unmarshal(output, &s)
			}
			results <- result{s, err}
		}()
	}
	var pids []int
	for range 3 {
		r := <-results
		if r.err != nil || r.status.State != StateUp {
			t.Errorf("got %+v, %v", r.status, r.err)
		}
		pids = append(pids, r.status.PID)
	}
	if len(slices.Compact(pids)) != 1 {
		t.Errorf("supervisors %v: want one", pids)
	}
}

// BenchmarkClusterUp measures a start from nothing, the binary being in the cache,
// until the node takes Pods:
//
//	HARMONY_FLEET_E2E=1 go test -run '^$' -bench ClusterUp -benchtime 5x ./e2e/cluster/local/
func BenchmarkClusterUp(b *testing.B) {
	needCluster(b)
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		c, err := New(testOptions()).Up(b.Context())
		took = append(took, time.Since(begin))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Down(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "s-median")
	b.ReportMetric(took[len(took)-1].Seconds(), "s-worst")
}

// Package scale measures fleet-operator, the program, with thousands of devices. It
// has no code, and benchmarks only:
//
//	HARMONY_FLEET_E2E=1 go test -run '^$' -bench . -benchtime 1x -timeout 20m ./internal/operator/scale -devices 10000
//
// What the devices, the broker and the API server take is theirs: they are in other
// processes than the operator, on the same machine.
package scale

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/childproc"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

var devices = flag.Int("devices", 10000, "how many devices are simulated")

func TestMain(m *testing.M) { kubetest.Main(m) }

const patience = 5 * time.Minute

// operator is the program while it runs.
type operator struct {
	*childproc.Process
	b   *testing.B
	log syncbuf.Buffer
}

func start(b *testing.B, binary, config string) *operator {
	b.Helper()
	o := &operator{b: b}
	cmd := exec.Command(binary, "--config", config)
	cmd.Stdout, cmd.Stderr = &o.log, &o.log
	var err error
	if o.Process, err = childproc.Start(cmd); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(o.Kill)
	return o
}

// resident is the memory of the program, in MiB, now and at most so far.
func (o *operator) resident() (now, peak float64) {
	o.b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.Cmd.Process.Pid))
	if err != nil {
		o.b.Fatalf("the operator is gone: %v\n%s", err, o.log.Bytes())
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 3 && (f[0] == "VmRSS:" || f[0] == "VmHWM:") {
			kib, _ := strconv.ParseFloat(f[1], 64)
			if f[0] == "VmRSS:" {
				now = kib / 1024
			} else {
				peak = kib / 1024
			}
		}
	}
	return now, peak
}

// cpu is the processor time of the program so far.
func (o *operator) cpu() time.Duration {
	o.b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.Cmd.Process.Pid))
	if err != nil {
		o.b.Fatal(err)
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / 100 // clock ticks, 100 a second on Linux
}

// BenchmarkFleet measures, in this order: the first report of all devices; a
// Deployment of all of them; rest, with heartbeats; a change that one device reports;
// a restart.
func BenchmarkFleet(b *testing.B) {
	kube := kubetest.Shared(b)
	c, ns := kube.Client(b), kube.Namespace(b)
	binary := filepath.Join(b.TempDir(), "fleet-operator")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/harmony-fleet/fleet/cmd/fleet-operator").CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	broker := fleettest.StartBroker(b)
	user, password := broker.DataLogin()
	file := filepath.Join(b.TempDir(), "operator.toml")
	text := fmt.Sprintf("[nats]\nurl = %q\n[credentials]\ntype = \"shared\"\nuser = %q\npassword = %q\n[kubernetes]\nkubeconfig = %q\nnamespace = %q\nleader_election = false\n[metrics]\nlisten = \"off\"\n[health]\nlisten = \"off\"\n",
		broker.URL(), user, password, kube.Kubeconfig(b), ns)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	fleet := broker.Fleet(b, fleettest.Options{Devices: *devices, Prefix: ns + "-"})
	wait := func(what string, cond func() bool) time.Duration {
		b.Helper()
		begin := time.Now()
		// Seldom: the looks load the same machine.
		var next time.Time
		testwait.For(b, patience, what, func() bool {
			if time.Now().Before(next) {
				return false
			}
			ok := cond()
			next = time.Now().Add(200 * time.Millisecond)
			return ok
		})
		return time.Since(begin)
	}
	n := int32(*devices)
	status := func() v1alpha1.DeploymentStatus {
		d := &v1alpha1.Deployment{}
		if err := c.Get(b.Context(), client.ObjectKey{Namespace: ns, Name: "web"}, d); err != nil {
			b.Fatal(err)
		}
		if d.Status.ObservedGeneration != d.Generation {
			return v1alpha1.DeploymentStatus{}
		}
		return d.Status
	}
	// writes counts what is written to devices and Deployments since it was asked last.
	config := kube.Config()
	config.Timeout = 0 // it would end a watch
	watching, err := client.NewWithWatch(config, client.Options{Scheme: kubetest.Scheme()})
	if err != nil {
		b.Fatal(err)
	}
	var written atomic.Int64
	follow := func() {
		for _, list := range []client.ObjectList{&v1alpha1.DeviceList{}, &v1alpha1.DeploymentList{}} {
			if err := c.List(b.Context(), list, client.Limit(1)); err != nil {
				b.Fatal(err)
			}
			w, err := watching.Watch(b.Context(), list, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.GetResourceVersion()}})
			if err != nil {
				b.Fatal(err)
			}
			var counting sync.WaitGroup
			counting.Go(func() {
				for range w.ResultChan() {
					written.Add(1)
				}
			})
			b.Cleanup(func() {
				w.Stop()
				counting.Wait()
			})
		}
	}
	writes := func() int64 { return written.Swap(0) }
	objects := func() int {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("DeviceList"))
		if err := c.List(b.Context(), &list, client.Limit(1)); err != nil {
			b.Fatal(err)
		}
		n := len(list.Items)
		if list.RemainingItemCount != nil {
			n += int(*list.RemainingItemCount)
		}
		return n
	}

	for b.Loop() {
		o := start(b, binary, file)
		first := wait("an object for each device", func() bool { return objects() == *devices })
		b.ReportMetric(first.Seconds(), "s-first-report")

		all := intstr.FromString("100%")
		d := &v1alpha1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web"}}
		d.Spec.Selector.All, d.Spec.Rollout.BatchSize = true, &all
		d.Spec.Score = v1alpha1.Score{Type: command.ScorePodmanV0, Data: v1alpha1.ScoreData{Services: []v1alpha1.Service{{Name: "main", Image: "example.org/good:1"}}}}
		if err := c.Create(b.Context(), d); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(wait("written to all", func() bool { return status().Updated == n }).Seconds(), "s-written")
		b.ReportMetric(wait("ready on all", func() bool { return status().Ready == n }).Seconds(), "s-ready-after")

		// At rest: the processor's time over two periods of heartbeats, once the writes
		// that the rollout caused are over.
		follow()
		since := time.Now()
		wait("ten seconds without a write", func() bool {
			if writes() > 0 {
				since = time.Now()
			}
			return time.Since(since) > 10*time.Second
		})
		begin, before := time.Now(), o.cpu()
		wait("two periods", func() bool { return time.Since(begin) > 2*command.HeartbeatInterval })
		b.ReportMetric(100*(o.cpu()-before).Seconds()/time.Since(begin).Seconds(), "%cpu-at-rest")
		if n := writes(); n > 0 {
			b.Errorf("%d writes at rest", n)
		}

		// One device breaks: until the status says so.
		broken := fleet.IDs()[*devices/2]
		at := time.Now()
		fleet.ReportOne(broken, command.DeploymentStatus{Phase: command.PhaseBackoff})
		wait("the status says so", func() bool { return status().Ready == n-1 })
		b.ReportMetric(time.Since(at).Seconds(), "s-status")
		now, peak := o.resident()
		b.ReportMetric(now, "MiB-resident")
		b.ReportMetric(peak, "MiB-peak")

		o.Kill()
		fleet.ReportOne(broken, command.DeploymentStatus{Phase: command.PhaseRunning})
		at = time.Now()
		o = start(b, binary, file)
		wait("steady after a restart", func() bool { return status().Ready == n })
		b.ReportMetric(time.Since(at).Seconds(), "s-restart")
		now, _ = o.resident()
		b.ReportMetric(now, "MiB-resident-restarted")
		o.Kill()
	}
}

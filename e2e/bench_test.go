package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The benchmarks want a cluster that is up and images that are there; run them with
// `make bench-e2e`. Each reports the median and the worst of its runs.

// report gives median and worst, in seconds.
func report(b *testing.B, what string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "s-median-"+what)
	b.ReportMetric(took[len(took)-1].Seconds(), "s-worst-"+what)
}

func BenchmarkBringUp(b *testing.B) {
	Require(b)
	for _, mode := range []AuthMode{UserPass, Callout} {
		for _, devices := range []int{1, 20} {
			b.Run(fmt.Sprintf("%s/devices=%d", mode, devices), func(b *testing.B) {
				var up, closed, gone []time.Duration
				for range b.N {
					begin := time.Now()
					s, err := BringUp(b.Context(), Options{AuthMode: mode, NumDevices: devices})
					if err != nil {
						b.Fatal(err)
					}
					up = append(up, time.Since(begin))
					begin = time.Now()
					if err := s.Close(); err != nil {
						b.Fatal(err)
					}
					closed = append(closed, time.Since(begin))
					kube, err := newKubeClient(s.cluster.Kubeconfig())
					if err != nil {
						b.Fatal(err)
					}
					for {
						list, err := kube.CoreV1().Pods(s.Namespace).List(b.Context(), metav1.ListOptions{})
						if err != nil {
							b.Fatal(err)
						}
						if len(list.Items) == 0 {
							break
						}
					}
					gone = append(gone, time.Since(begin))
					kube.close()
				}
				b.ReportMetric(0, "ns/op") // the mean says nothing here
				report(b, "up", up)
				report(b, "close", closed)
				report(b, "pods-gone", gone)
			})
		}
	}
}

// BenchmarkImages is the image step of a new process where nothing has changed.
func BenchmarkImages(b *testing.B) {
	Require(b)
	opts := Options{}
	if err := opts.setDefaults(); err != nil {
		b.Fatal(err)
	}
	provider, err := selectProvider(b.Context(), opts)
	if err != nil {
		b.Fatal(err)
	}
	c, err := provider.Up(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for range b.N + 1 {
		built.images = nil
		begin := time.Now()
		images, err := buildImages(b.Context(), &opts)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := provideImages(b.Context(), c, images); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	b.ReportMetric(0, "ns/op")
	report(b, "images", took[1:]) // the first may have had something to do
}

// BenchmarkPingTest is the ping test from the start of its process to its end.
func BenchmarkPingTest(b *testing.B) {
	Require(b)
	binary := filepath.Join(b.TempDir(), "ping.test")
	if out, err := exec.Command("go", "test", "-c", "-o", binary, "./tests").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for _, mode := range []AuthMode{UserPass, Callout} {
		b.Run(string(mode), func(b *testing.B) {
			var took []time.Duration
			for range b.N {
				cmd := exec.Command(binary, "-test.run=^TestPing$/^"+string(mode)+"$")
				cmd.Dir, cmd.Env = "tests", os.Environ()
				begin := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				took = append(took, time.Since(begin))
			}
			b.ReportMetric(0, "ns/op")
			report(b, "green", took)
		})
	}
}

package operator

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// BenchmarkTenThousandDevices tells how long the first report of a whole fleet takes to
// become objects, how long a restart of the operator takes until it has read all anew,
// and how much is written while the fleet is well:
//
//	HARMONY_FLEET_E2E=1 go test -run '^$' -bench TenThousand -benchtime 1x ./internal/operator
//
// API server, etcd, broker, fleet and operator share the machine.
func BenchmarkTenThousandDevices(b *testing.B) {
	const devices = 10_000
	const minutes = 5 * time.Minute
	for range b.N {
		kube := kubetest.Start(b)
		if err := kube.InstallCRDs(b.Context()); err != nil {
			b.Fatal(err)
		}
		c, ns := kube.Client(b), kube.Namespace(b)
		grant(b, c, ns, Rules(ns, []string{ns}))
		broker := fleettest.StartBroker(b)
		broker.Fleet(b, fleettest.Options{Devices: devices})

		var writes atomic.Int64
		counted := func() *rest.Config {
			config := kube.Config()
			config.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					// The leader's Lease is renewed whatever happens, and reviews store nothing.
					if r.Method != http.MethodGet && !strings.Contains(r.URL.Path, "/leases") && !strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews") {
						writes.Add(1)
					}
					return next.RoundTrip(r)
				})
			})
			return config
		}
		begin := time.Now()
		op := startWith(b, counted(), broker, ns, mirror.Options{})
		var looked time.Time
		testwait.For(b, minutes, "every device to be online", func() bool {
			if time.Since(looked) < 3*time.Second { // a look is a list of them all
				return false
			}
			looked = time.Now()
			return onlineObjects(b, c) == devices
		})
		b.ReportMetric(time.Since(begin).Seconds(), "s/all-devices")

		// What was put off is written within seconds.
		for last := int64(-1); last != writes.Load(); {
			last = writes.Load()
			settled := time.Now()
			testwait.For(b, minutes, "some seconds", func() bool { return time.Since(settled) > 5*time.Second })
		}
		before, began := writes.Load(), time.Now()
		testwait.For(b, minutes, "two heartbeats of each", func() bool { return time.Since(began) > 30*time.Second })
		b.ReportMetric(float64(writes.Load()-before), "writes/30s-at-rest")

		op.stop()
		before, begin = writes.Load(), time.Now()
		op = startWith(b, counted(), broker, ns, mirror.Options{})
		testwait.For(b, minutes, "it to lead and to be current", func() bool {
			op.state.mu.Lock()
			leads := op.state.leads
			op.state.mu.Unlock()
			return leads && op.state.notReady() == nil
		})
		b.ReportMetric(time.Since(begin).Seconds(), "s/restart")
		began = time.Now()
		testwait.For(b, minutes, "a look at every device", func() bool { return time.Since(began) > 15*time.Second })
		b.ReportMetric(float64(writes.Load()-before), "writes/restart")
		op.stop()
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func onlineObjects(tb testing.TB, c client.Client) (n int) {
	tb.Helper()
	var list v1alpha1.DeviceList
	if err := c.List(tb.Context(), &list); err != nil {
		tb.Fatal(err)
	}
	for i := range list.Items {
		if meta.IsStatusConditionTrue(list.Items[i].Status.Conditions, v1alpha1.DeviceOnline) {
			n++
		}
	}
	return n
}

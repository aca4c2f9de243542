package client_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// benchFleet is a broker with n devices on one connection that answer as cheaply
// as can be, over TCP.
func benchFleet(b *testing.B, n int) (*nats.Conn, *client.Client, []string) {
	b.Helper()
	f := newFleet(b)
	tcp := func(o *nats.Options) error { o.InProcessServer, o.Url = nil, f.srv.ClientURL(); return nil }
	dev := f.conn("device", "v", command.DeviceInboxPrefix("d"), tcp)
	var devices []string
	for i := range n {
		id := fmt.Sprintf("vm-device-%05d", i)
		devices = append(devices, id)
		at := time.Now()
		data, err := json.Marshal(command.PingReply{
			DeviceID: id, AgentVersion: "0.1.0", UptimeS: 12, BootID: "2b1f7a0e-66c5-4d2c-8d3e-0d6a5b7a9c10",
			Instance: "k3vq7m2rj5xd", Protocol: 1, Runtime: command.RuntimeDisabled, Time: &at, MemoryRSSBytes: 12345678,
		})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := dev.Subscribe(command.Subscription(id), func(m *nats.Msg) { _ = m.Respond(data) }); err != nil {
			b.Fatal(err)
		}
	}
	f.flush(dev)
	nc := f.ops(tcp)
	return nc, f.client(nc, client.Options{}), devices
}

// p50 reports the median of what f takes.
func p50(b *testing.B, f func()) {
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		start := time.Now()
		f()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-µs")
}

// BenchmarkPing compares a ping with a bare request across the same accounts to
// the same responder.
func BenchmarkPing(b *testing.B) {
	nc, c, devices := benchFleet(b, 1)
	subject := command.Subject(devices[0], command.VerbPing)
	b.Run("bare", func(b *testing.B) {
		p50(b, func() {
			if _, err := nc.Request(subject, nil, 5*time.Second); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("client", func(b *testing.B) {
		p50(b, func() {
			if _, err := c.Ping(b.Context(), devices[0]); err != nil {
				b.Fatal(err)
			}
		})
	})
}

// BenchmarkPingAll compares a fan-out to 1,000 devices with a bare scatter.
func BenchmarkPingAll(b *testing.B) {
	nc, c, devices := benchFleet(b, 1000)
	subjects := make([]string, len(devices))
	for i, d := range devices {
		subjects[i] = command.Subject(d, command.VerbPing)
	}
	b.Run("bare", func(b *testing.B) {
		done := make(chan struct{}, len(devices))
		inbox := nc.NewInbox()
		sub, err := nc.Subscribe(inbox+".*", func(*nats.Msg) { done <- struct{}{} })
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = sub.Unsubscribe() }()
		p50(b, func() {
			for i, s := range subjects {
				if err := nc.PublishRequest(s, fmt.Sprintf("%s.%d", inbox, i), nil); err != nil {
					b.Fatal(err)
				}
			}
			for range devices {
				<-done
			}
		})
	})
	b.Run("client", func(b *testing.B) {
		p50(b, func() {
			n := 0
			for r := range c.PingAll(b.Context(), devices, client.FanOut{}) {
				if n++; r.Err != nil {
					b.Fatal(r.Err)
				}
			}
			if n != len(devices) {
				b.Fatalf("%d results", n)
			}
		})
	})
}

// BenchmarkOffline is the answer for a device that is away, the look at its last
// heartbeat included.
func BenchmarkOffline(b *testing.B) {
	_, c, _ := benchFleet(b, 0)
	p50(b, func() {
		if _, err := c.Ping(b.Context(), "nowhere"); err == nil {
			b.Fatal("no error")
		}
	})
}

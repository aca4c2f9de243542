package agent

import (
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// BenchmarkIdleAgent measures what an agent costs that has nothing to do, in
// process with its broker: "B/agent" of heap and stacks, the broker's side of
// the connection included; "B/conn" is the same for a bare connection with the
// same subscriptions that has made one request.
func BenchmarkIdleAgent(b *testing.B) {
	const n = 500
	w := newWorld(b)
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	measure := func(make func(i int)) float64 {
		before := memory()
		for i := range n {
			make(i)
		}
		return float64(memory()-before) / n
	}
	var conns []*nats.Conn
	bare := measure(func(i int) {
		id := fmt.Sprintf("b%d", i)
		nc, err := nats.Connect("", nats.InProcessServer(w.srv), nats.UserInfo(broker.UserDevice, password),
			nats.CustomInboxPrefix(command.DeviceInboxPrefix(id)))
		if err != nil {
			b.Fatal(err)
		}
		ch := make(chan *nats.Msg, 8)
		for _, s := range []string{command.SeenSubject(id), command.DesiredStateSubject(id)} {
			if _, err := nc.ChanSubscribe(s, ch); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := nc.Subscribe(command.Subscription(id), func(*nats.Msg) {}); err != nil {
			b.Fatal(err)
		}
		if _, err := nc.Request(access.UserInfo, nil, patience); err != nil {
			b.Fatal(err)
		}
		conns = append(conns, nc)
	})
	for _, nc := range conns {
		nc.Close()
	}
	var agents []*running
	full := measure(func(i int) {
		o := w.options(fmt.Sprintf("d%d", i))
		o.StateDir, o.NATS.URLs, o.NATS.InProcess = "", nil, w.srv
		o.HeartbeatInterval = time.Hour
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		agents = append(agents, start(b, o))
	})
	for b.Loop() {
		runtime.Gosched()
	}
	b.ReportMetric(bare, "B/conn")
	b.ReportMetric(full, "B/agent")
	b.ReportMetric(float64(runtime.NumGoroutine())/n, "goroutines/agent")
	for _, a := range agents {
		a.stop()
	}
}

// BenchmarkPing compares the median of a ping with that of a bare request to a
// bare responder across the same two accounts.
func BenchmarkPing(b *testing.B) {
	w := newWorld(b)
	o := w.options("d1")
	o.Logger, o.AuditDelay = nil, 300*time.Millisecond
	a := start(b, o)
	bare := w.dial(userInsider)
	if _, err := bare.Subscribe(command.Subscription("d2"), func(m *nats.Msg) {
		_ = m.Respond([]byte(`{"device_id":"d2","agent_version":"0","uptime_s":1}`))
	}); err != nil {
		b.Fatal(err)
	}
	if err := bare.Flush(); err != nil {
		b.Fatal(err)
	}
	median := map[string]time.Duration{}
	for b.Loop() {
		took := map[string][]time.Duration{}
		for range 2000 {
			for _, id := range []string{"d1", "d2"} {
				began := time.Now()
				if _, err := w.ops.Request(command.Subject(id, command.VerbPing), nil, patience); err != nil {
					b.Fatal(err)
				}
				took[id] = append(took[id], time.Since(began))
			}
		}
		for id, t := range took {
			slices.Sort(t)
			median[id] = t[len(t)/2]
		}
	}
	b.ReportMetric(float64(median["d1"].Nanoseconds())/1e3, "agent-µs")
	b.ReportMetric(float64(median["d2"].Nanoseconds())/1e3, "bare-µs")
	b.ReportMetric(float64(median["d1"])/float64(median["d2"]), "ratio")
	testwait.For(b, 2*patience, "audit", func() bool { return a.audit.spool.Pending() == 0 })
}

// BenchmarkStart measures from the start of an agent until it takes commands.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	o := w.options("d1")
	o.Logger = nil
	for b.Loop() {
		a := start(b, o)
		b.StopTimer()
		a.stop()
		b.StartTimer()
	}
}

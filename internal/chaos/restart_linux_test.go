package chaos

import (
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// brokerRestart kills the broker of many agents, each with a token of its own,
// over TCP with TLS, and counts the time until the last one answers.
func brokerRestart(t *testing.T) {
	n := size(10000, 100)
	w := newCalloutWorld(t, nil)
	// The agents' own jitter (2 to 12 s), which is what it is for.
	s := newAgents(t, n, func(_ int, id string) agent.Options {
		return agent.Options{NATS: w.deviceConfig(id, w.urls)}
	})
	c := w.client(w.urls)
	took := answers(t, c, s.ids, time.Now(), 2*time.Minute)
	t.Logf("%d agents answer in %v", n, took.Round(time.Millisecond))
	// Whoever is back sends a heartbeat. To ask thousands again and again who are not
	// yet would keep broker and callout from letting them in.
	var mu sync.Mutex
	heard := map[string]bool{}
	live := w.mustConn(access.Ops, w.urls)
	if _, err := live.Subscribe(command.HeartbeatSubject("*"), func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		heard[m.Subject] = true
	}); err != nil {
		t.Fatal(err)
	}
	w.nodes[0].kill()
	mu.Lock()
	clear(heard)
	mu.Unlock()
	w.nodes[0].start()
	begin := time.Now()
	told := 0 // in tenths
	testwait.For(t, 2*time.Minute, "a heartbeat of every agent", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if now := 10 * len(heard) / n; now > told {
			told = now
			t.Logf("%d of %d agents heard after %v", len(heard), n, time.Since(begin).Round(100*time.Millisecond))
		}
		return len(heard) == n
	})
	t.Logf("a heartbeat of each of %d agents was heard after %v", n, time.Since(begin).Round(10*time.Millisecond))
	took = answers(t, c, s.ids, begin, 3*time.Minute)
	t.Logf("%d agents back after %v", n, took.Round(10*time.Millisecond))
	// At the slice's size the time tells of the machine and the race detector.
	if full && took > 30*time.Second {
		t.Errorf("%d agents took %v to come back, more than 30 s", n, took)
	}
	if n := s.ended.Load(); n > 0 {
		t.Errorf("%d agents gave up", n)
	}
}

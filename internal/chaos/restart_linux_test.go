package chaos

import (
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/agent"
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
	w.nodes[0].kill()
	w.nodes[0].start()
	took = answers(t, c, s.ids, time.Now(), 2*time.Minute)
	t.Logf("%d agents back after %v", n, took.Round(10*time.Millisecond))
	// At the slice's size the time tells of the machine and the race detector.
	if full && took > 30*time.Second {
		t.Errorf("%d agents took %v to come back, more than 30 s", n, took)
	}
	if n := s.ended.Load(); n > 0 {
		t.Errorf("%d agents gave up", n)
	}
}

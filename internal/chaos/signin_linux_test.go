package chaos

import (
	"context"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/stack"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func calloutFaults(t *testing.T) {
	var way *proxy
	w := newCalloutWorld(t, func(broker string) string {
		way = newProxy(t, broker)
		return way.addr()
	})
	options := func(id string) agent.Options {
		return agent.Options{NATS: w.deviceConfig(id, w.urls, soon()...), RetryMin: 100 * time.Millisecond, RetryMax: time.Second}
	}
	s := newAgents(t, 3, func(_ int, id string) agent.Options { return options(id) })
	c := w.client(w.urls)
	answers(t, c, s.ids, time.Now(), patience)
	// join runs one agent more, which must get in within patience of ready.
	join := func(id string) func(since time.Time) {
		t.Helper()
		o := options(id)
		o.DeviceID = id
		a, err := agent.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
		return func(since time.Time) {
			t.Helper()
			testwait.For(t, 2*patience, id+" to get in", func() bool {
				select {
				case err := <-done:
					t.Fatalf("%s gave up: %v", id, err)
				case <-a.Ready():
					return true
				default:
				}
				return false
			})
			t.Logf("%s is in after %v", id, time.Since(since).Round(time.Millisecond))
		}
	}
	// keptOut: who is connected goes on, who is not is refused, soon.
	keptOut := func(what string) {
		t.Helper()
		answers(t, c, s.ids, time.Now(), patience)
		begin := time.Now()
		nc, err := w.conn(access.Ops, w.urls)
		if err == nil {
			nc.Close()
			t.Fatalf("%s: somebody got in", what)
		}
		if took := time.Since(begin); outcome(err) != command.OutcomeDenied || took > 10*time.Second {
			t.Errorf("%s: after %v: %v", what, took, err)
		}
	}

	way.setDelay(500 * time.Millisecond)
	join("slow")(time.Now())
	way.setDelay(0)

	way.freeze(true)
	keptOut("a silent callout")
	in := join("silent")
	if full {
		// Its connection stays half-dead until its own pings fail.
		way.thaw()
		in(time.Now())
	}
	w.callout.stop()
	keptOut("no callout")
	in2 := join("dead")
	way.thaw()
	w.callout.start()
	begin := time.Now()
	in(begin)
	in2(begin)
	answers(t, c, append([]string{"slow", "silent", "dead"}, s.ids...), begin, patience)
}

func issuerFaults(t *testing.T) {
	const lifetime = 8 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := stack.Start(ctx, stack.Options{
		Devices: 3, Port: stack.AnyPort, DataDir: t.TempDir(), TLS: true, TokenLifetime: lifetime, AdminTokenLifetime: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c := s.Client()
	answers(t, c, s.DeviceIDs(), time.Now(), patience)

	// Slow is no fault: tokens are asked for while the old ones last.
	s.Issuer().SetFaults(issuer.Faults{Delay: 500 * time.Millisecond})
	pace := time.NewTicker(20 * time.Millisecond) // what is tried is the issuer, not the processor
	defer pace.Stop()
	for begin := time.Now(); time.Since(begin) < 2*lifetime; <-pace.C {
		for r := range c.PingAll(context.Background(), s.DeviceIDs(), client.FanOut{}) {
			if r.Err != nil {
				t.Fatalf("with a slow issuer: %v", r.Err)
			}
		}
	}
	for _, fault := range []struct {
		name      string
		set, mend func() error
	}{
		{"silent", faults(s, issuer.Faults{Delay: time.Hour}), faults(s, issuer.Faults{})},
		{"broken", faults(s, issuer.Faults{Status: 500}), faults(s, issuer.Faults{})},
		{"dead", func() error { s.Issuer().Stop(); return nil }, s.Issuer().Restart},
	} {
		if err := fault.set(); err != nil {
			t.Fatal(err)
		}
		for _, id := range s.DeviceIDs() {
			testwait.For(t, patience, "the token of "+id+" to run out, issuer "+fault.name, func() bool {
				_, err := c.Ping(context.Background(), id)
				switch outcome(err) {
				case command.OutcomeOK, command.OutcomeTimeout:
				case command.OutcomeOffline:
					return true
				default:
					t.Fatalf("issuer %s: %v", fault.name, err)
				}
				return false
			})
		}
		// The callout knows the keys: who has a token is let in.
		begin := time.Now()
		in, cancel := context.WithTimeout(context.Background(), patience)
		nc, err := s.ConnectAs(in, access.Ops, access.RoleViewer)
		cancel()
		if err != nil {
			t.Fatalf("issuer %s: a good token: %v", fault.name, err)
		}
		nc.Close()
		t.Logf("issuer %s: a good token got in after %v", fault.name, time.Since(begin).Round(time.Millisecond))
		if err := fault.mend(); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
		t.Logf("issuer %s: all devices back %v after it is mended", fault.name, answers(t, c, s.DeviceIDs(), begin, patience).Round(time.Millisecond))
	}
}

func faults(s *stack.Stack, f issuer.Faults) func() error {
	return func() error { s.Issuer().SetFaults(f); return nil }
}

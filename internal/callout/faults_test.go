package callout

import (
	"context"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// patient signs in as an agent does: it never gives up.
func (e *env) patient(t testing.TB, token string, jitter time.Duration) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(e.broker.ClientURL(), nats.Timeout(10*time.Second), nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(jitter, jitter),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
		nats.TokenHandler(func() string { return token }))
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(nc.Close)
	return nc
}

// crowd is n patient clients that come at the same time, and come again, if they must,
// spread over 10 s, as agents do.
func (e *env) crowd(t testing.TB, n int, token string) []*nats.Conn {
	t.Helper()
	conns := make([]*nats.Conn, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { conns[i] = e.patient(t, token, 10*time.Second) })
	}
	wg.Wait()
	t.Cleanup(func() { // each Close waits for the attempt that is under way
		var wg sync.WaitGroup
		for _, nc := range conns {
			if nc != nil {
				wg.Go(nc.Close)
			}
		}
		wg.Wait()
	})
	return conns
}

func connected(conns []*nats.Conn) int {
	n := 0
	for _, nc := range conns {
		if nc != nil && nc.IsConnected() {
			n++
		}
	}
	return n
}

func TestCalloutGoneAndBack(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	token := e.token(t, "device-vm-1", issuer.MintOptions{})
	before := e.mustDial(t, token)
	c.stop(t)
	if c.NotReady() == nil {
		t.Error("a stopped callout says that it is ready")
	}
	if before.IsClosed() {
		t.Error("a client was disconnected because the callout went away")
	}
	waiting := e.patient(t, token, 0)
	if waiting.IsConnected() {
		t.Fatal("let in without a callout")
	}
	e.serve(t, nil)
	testwait.For(t, 10*time.Second, "the waiting client to be let in", waiting.IsConnected)
}

func TestServerRestartBringsEveryoneBack(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	nc := e.patient(t, e.token(t, "device-vm-1", issuer.MintOptions{}), 0)
	e.cfg.Port = portOf(t, e.broker.ClientURL())
	e.broker.Close()
	testwait.For(t, 5*time.Second, "not ready", func() bool { return c.NotReady() != nil })
	e.startBroker(t)
	testwait.For(t, 10*time.Second, "the callout to be ready again", func() bool { return c.NotReady() == nil })
	testwait.For(t, 10*time.Second, "the client to be back", nc.IsConnected)
}

func TestServerThatComesLater(t *testing.T) {
	e := newEnv(t)
	e.cfg.Port = portOf(t, e.broker.ClientURL())
	e.broker.Close()
	c := e.start(t, nil)
	testwait.For(t, 5*time.Second, "the failed attempt in the log", func() bool { return e.logs.count("cannot connect to NATS") > 0 })
	e.startBroker(t)
	testwait.For(t, 10*time.Second, "ready", func() bool { return c.NotReady() == nil })
	e.mustDial(t, e.token(t, "viewer", issuer.MintOptions{}))
}

func TestIssuerDownAndBack(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	e.issuer.Stop()
	e.mustDial(t, e.token(t, "viewer", issuer.MintOptions{})) // with the keys it has
	c.stop(t)

	cold := e.start(t, nil) // no keys at all
	testwait.For(t, 5*time.Second, "the self-probe to be answered all the same", func() bool {
		return cold.metric(t, "fleet_callout_requests_total", "probe") > 0
	})
	if cold.NotReady() == nil {
		t.Error("ready without any issuer's keys")
	}
	if nc, err := e.dial(e.token(t, "viewer", issuer.MintOptions{})); err == nil {
		nc.Close()
		t.Fatal("let in without keys")
	}
	if e.logs.count("reason=issuer_unavailable") == 0 {
		t.Errorf("log:\n%s", e.logs)
	}
	if err := e.issuer.Restart(); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, 10*time.Second, "ready", func() bool { return cold.NotReady() == nil })
	e.mustDial(t, e.token(t, "viewer", issuer.MintOptions{}))
}

func TestKeyRotationIsFoundDespiteAFloodOfUnknownKeys(t *testing.T) {
	e := newEnv(t)
	e.serve(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	for i := range 4 {
		flood.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				tok, err := e.issuer.Mint("admin", issuer.MintOptions{KeyID: string(rune('a'+i)) + time.Now().String()})
				if err != nil {
					t.Error(err)
					return
				}
				if nc, err := e.dial(tok); err == nil {
					nc.Close()
					t.Error("garbage let in")
				}
			}
		})
	}
	if err := e.issuer.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	nc := e.patient(t, e.token(t, "viewer", issuer.MintOptions{}), 0)
	testwait.For(t, 10*time.Second, "a token of the new key to be let in", nc.IsConnected)
	cancel()
	flood.Wait()
}

func TestSlowIssuerDelaysOnlyItsOwn(t *testing.T) {
	e := newEnv(t)
	slow, err := issuer.Start(t.Context(), issuer.Options{Users: users, ProjectID: "200"})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	slow.SetFaults(issuer.Faults{Delay: 30 * time.Second})
	e.serve(t, func(cfg *Config) {
		second := cfg.Issuers[0]
		second.URL, second.Audience, second.ProjectID = slow.URL(), "200", "200"
		cfg.Issuers = append(cfg.Issuers, second)
		cfg.Workers = 4
	})
	tok, err := slow.Mint("viewer", issuer.MintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e.crowd(t, 8, tok)
	for range 20 {
		start := time.Now()
		e.mustDial(t, e.token(t, "viewer", issuer.MintOptions{})).Close()
		if d := time.Since(start); d > soon {
			t.Errorf("a login with the healthy issuer took %v", d)
		}
	}
}

func TestStaleRequestsAreDroppedUnanswered(t *testing.T) {
	e := newEnv(t)
	e.issuer.SetFaults(issuer.Faults{Delay: 600 * time.Millisecond})
	e.keysFirst = time.Nanosecond
	c := e.start(t, func(cfg *Config) { cfg.Workers, cfg.MaxAge = 1, Duration(100*time.Millisecond) })
	testwait.For(t, 5*time.Second, "the callout to be connected", func() bool { return e.logs.count("connected to NATS") > 0 })
	token := e.token(t, "viewer", issuer.MintOptions{})
	conns := e.crowd(t, 5, token) // the one worker waits for the keys with the first; the others grow old
	testwait.For(t, 10*time.Second, "everyone to be let in in the end", func() bool { return connected(conns) == 5 })
	if n := c.metric(t, "fleet_callout_dropped_total", "stale"); n == 0 {
		t.Error("nothing was dropped as stale")
	}
	if e.logs.count("dropping logins unanswered") == 0 {
		t.Error("no word of it in the log")
	}
}

func TestPanicOfOneLoginIsContained(t *testing.T) {
	e := newEnv(t)
	c := e.serve(t, nil)
	c.issuers[e.issuer.URL()].cfg.DeviceIDPrefix = nil // makes every device login panic
	start := time.Now()
	if nc, err := e.dial(e.token(t, "device-vm-1", issuer.MintOptions{})); err == nil {
		nc.Close()
		t.Fatal("let in")
	}
	if time.Since(start) > soon {
		t.Error("the client was left waiting")
	}
	if c.metric(t, "fleet_callout_requests_total", "denied", "internal") != 1 || e.logs.count("panic") == 0 {
		t.Errorf("log:\n%s", e.logs)
	}
	e.mustDial(t, e.token(t, "viewer", issuer.MintOptions{}))
}

func TestStopFinishesWhatWasAccepted(t *testing.T) {
	e := newEnv(t)
	e.issuer.SetFaults(issuer.Faults{Delay: 300 * time.Millisecond})
	e.keysFirst = time.Nanosecond
	c := e.start(t, nil)
	testwait.For(t, 5*time.Second, "the callout to be connected", func() bool { return e.logs.count("connected to NATS") > 0 })
	token := e.token(t, "viewer", issuer.MintOptions{})
	result := make(chan error, 1)
	go func() {
		nc, err := e.dial(token)
		if err == nil {
			nc.Close()
		}
		result <- err
	}()
	testwait.For(t, 5*time.Second, "the login to be waiting", func() bool { return e.broker.NumClients() >= 2 && c.busy(e) })
	start := time.Now()
	c.stop(t)
	if d := time.Since(start); d > soon {
		t.Errorf("the stop took %v", d)
	}
	if err := <-result; err != nil {
		t.Errorf("the login that was under way: %v\n%s", err, e.logs)
	}
}

// busy tells whether a login waits for the issuer's keys.
func (c *callout) busy(e *env) bool {
	return c.issuers[e.issuer.URL()].verifier.Stats().Waiting > 0
}

func portOf(t testing.TB, raw string) int {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

package stack

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestBrokerRestartIsSurvived(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 3, Auth: auth})
		url := s.NATSURL()
		for round := range 2 {
			s.StopBroker()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			_, err := s.Client().Ping(ctx, "vm-device-00")
			cancel()
			if err == nil {
				t.Fatalf("round %d: an answer without a broker", round)
			}
			if err := s.StartBroker(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.NATSURL() != url {
				t.Fatalf("the broker moved from %s to %s", url, s.NATSURL())
			}
			for _, d := range s.DeviceIDs() {
				pings(t, s.Client(), d)
			}
		}
	})
}

func TestCalloutThatIsAwayKeepsOutOnlyNewcomers(t *testing.T) {
	s := up(t, Options{Devices: 2})
	if err := s.StopAgent("vm-device-01"); err != nil {
		t.Fatal(err)
	}
	if err := s.StopCallout(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().Ping(t.Context(), "vm-device-00"); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	begin := time.Now()
	if _, err := s.ConnectAs(t.Context(), access.Ops, access.RoleViewer); err == nil {
		t.Error("somebody got in without the callout")
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("the refusal took %v", d)
	}
	// An agent that starts now keeps trying, and comes up when the callout does.
	if err := s.AddAgent(t.Context(), "vm-device-01", "vm-device-01"); err != nil {
		t.Fatal(err)
	}
	if err := s.StartCallout(t.Context()); err != nil {
		t.Fatal(err)
	}
	pings(t, s.Client(), "vm-device-01")
	if _, err := s.ConnectAs(t.Context(), access.Ops, access.RoleViewer); err != nil {
		t.Errorf("with the callout back: %v", err)
	}
}

func TestBrokerAndCalloutRestartTogether(t *testing.T) {
	s := up(t, Options{Devices: 2})
	if err := s.StopCallout(); err != nil {
		t.Fatal(err)
	}
	s.StopBroker()
	if err := s.StartBroker(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.StartCallout(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range s.DeviceIDs() {
		pings(t, s.Client(), d)
	}
}

func TestIssuerThatIsAwayKeepsOutOnlyNewTokens(t *testing.T) {
	s := up(t, Options{Devices: 1})
	id, err := s.NewIdentity(time.Hour, access.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	s.Issuer().Stop()
	if _, err := s.Client().Ping(t.Context(), "vm-device-00"); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	// Its keys are known: a token that it made is good.
	nc, err := s.dial(t.Context(), tokenSource(access.Ops, id.Token), id.InboxPrefix, "person")
	if err != nil {
		t.Fatalf("a token from before: %v", err)
	}
	nc.Close()
	// A device whose agent starts now has no token yet.
	if err := s.AddAgent(t.Context(), "vm-device-77", "vm-device-77"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().Ping(t.Context(), "vm-device-77"); outcome(err) != command.OutcomeUnknownDevice {
		t.Errorf("a device without a token: %v", err)
	}
	if err := s.Issuer().Restart(); err != nil {
		t.Fatal(err)
	}
	pings(t, s.Client(), "vm-device-77")
}

func TestKeyRotationLocksNobodyOut(t *testing.T) {
	s := up(t, Options{Devices: 1})
	before, err := s.NewIdentity(time.Hour, access.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	connects := func(what string, id Identity) {
		t.Helper()
		nc, err := s.dial(t.Context(), tokenSource(access.Ops, id.Token), id.InboxPrefix, "person")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		nc.Close()
	}
	connects("before", before)
	if err := s.Issuer().RotateKeys(); err != nil {
		t.Fatal(err)
	}
	after, err := s.NewIdentity(time.Hour, access.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	// The callout asks for new keys at most every 2 s, whatever arrives; who is
	// refused meanwhile tries again.
	testwait.For(t, patience, "the new key at the callout", func() bool {
		nc, err := s.dial(t.Context(), tokenSource(access.Ops, after.Token), after.InboxPrefix, "person")
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
	connects("signed with the old key", before)
	if _, err := s.Client().Ping(t.Context(), "vm-device-00"); err != nil {
		t.Error(err)
	}
	// A device signs in with a token of the new key.
	if err := s.StopAgent("vm-device-00"); err != nil {
		t.Fatal(err)
	}
	if err := s.AddAgent(t.Context(), "vm-device-00", "vm-device-00"); err != nil {
		t.Fatal(err)
	}
	pings(t, s.Client(), "vm-device-00")
}

func TestWrongTokensAreDenied(t *testing.T) {
	s := up(t, Options{})
	expired, err := s.NewIdentity(-time.Hour, access.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	good, err := s.NewIdentity(time.Hour, access.RoleViewer)
	if err != nil {
		t.Fatal(err)
	}
	// Another byte in the middle of the signature: the last ones may hold unused bits.
	cut := strings.LastIndexByte(good.Token, '.') + 10
	other := byte('A')
	if good.Token[cut] == other {
		other = 'B'
	}
	forged := good.Token[:cut] + string(other) + good.Token[cut+1:]
	for name, token := range map[string]string{"expired": expired.Token, "wrongly signed": forged, "none": "", "no token at all": "x"} {
		nc, err := s.dial(t.Context(), tokenSource(access.Ops, token), good.InboxPrefix, "person")
		if err == nil {
			nc.Close()
			t.Errorf("%s: got in", name)
			continue
		}
		if outcome(err) != command.OutcomeDenied {
			t.Errorf("%s: %v", name, err)
		}
		if len(token) > 1 && strings.Contains(err.Error(), token) {
			t.Errorf("%s: the error holds the token", name)
		}
	}
}

// TestTokensAreRenewedUnderPingsAndNoneIsLost lets devices renew their tokens,
// and so their connections, many times while each is pinged without a pause.
func TestTokensAreRenewedUnderPingsAndNoneIsLost(t *testing.T) {
	s := up(t, Options{Devices: 3, TokenLifetime: 6 * time.Second, AdminTokenLifetime: time.Hour})
	before := connections(t, s)
	const renewals = 6 // two for each device
	var sent atomic.Int64
	testwait.For(t, 60*time.Second, "renewals", func() bool {
		for r := range s.Client().PingAll(t.Context(), s.DeviceIDs(), client.FanOut{}) {
			sent.Add(1)
			if r.Err != nil {
				t.Fatalf("after %d pings: %v", sent.Load(), r.Err)
			}
		}
		return connections(t, s) >= before+renewals
	})
	t.Logf("%d pings, %d connections more", sent.Load(), connections(t, s)-before)
}

// TestAdminTokenIsRenewed holds that the connection of the stack itself outlives
// its first token.
func TestAdminTokenIsRenewed(t *testing.T) {
	var tokens atomic.Int64
	s := up(t, Options{Devices: 1, AdminTokenLifetime: 4 * time.Second, OnAdminToken: func(string) { tokens.Add(1) }})
	first := s.AdminToken()
	before := connections(t, s)
	testwait.For(t, patience, "a new token, and a connection with it", func() bool {
		return s.AdminToken() != first && tokens.Load() >= 2 && connections(t, s) > before
	})
	pings(t, s.Client(), "vm-device-00")
}

// connections counts every connection that the broker ever took.
func connections(t *testing.T, s *Stack) uint64 {
	t.Helper()
	v, err := s.Broker().Varz(&server.VarzOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v.TotalConnections
}

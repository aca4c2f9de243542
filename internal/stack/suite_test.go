package stack

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestOneDeviceIsPinged(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 1, Auth: auth})
		reply, err := s.Client().Ping(t.Context(), "vm-device-00")
		if err != nil {
			t.Fatal(err)
		}
		if reply.DeviceID != "vm-device-00" || reply.Runtime != command.RuntimeDisabled || reply.Protocol != command.Protocol || reply.Instance == "" {
			t.Errorf("reply %+v", reply)
		}
	})
}

func TestEveryDeviceIsPingedAndNoneIsLost(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 20, Auth: auth})
		devices := append(s.DeviceIDs(), "vm-device-none", "not a device id")
		got := map[string]command.Outcome{}
		for r := range s.Client().PingAll(t.Context(), devices, client.FanOut{}) {
			if _, twice := got[r.Device]; twice {
				t.Errorf("%s ended twice", r.Device)
			}
			got[r.Device] = r.Outcome()
		}
		for _, d := range devices {
			want := command.OutcomeOK
			switch d {
			case "vm-device-none":
				want = command.OutcomeUnknownDevice
			case "not a device id":
				want = command.OutcomeRejected
			}
			if got[d] != want {
				t.Errorf("%s: %s, want %s", d, got[d], want)
			}
		}
		if len(got) != len(devices) {
			t.Errorf("%d results for %d devices", len(got), len(devices))
		}
	})
}

func TestDeviceThatIsOffIsOfflineAtOnce(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 2, Auth: auth})
		testwait.For(t, patience, "the status of both", func() bool {
			list, err := s.Client().Devices(t.Context(), nil)
			return err == nil && len(list) == 2
		})
		if err := s.StopAgent("vm-device-01"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err := s.Client().Ping(t.Context(), "vm-device-01")
		if !errors.Is(err, client.ErrDeviceOffline) || errors.Is(err, client.ErrUnknownDevice) {
			t.Errorf("a device that is off: %v", err)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("that took %v", d)
		}
		begin = time.Now()
		if _, err := s.Client().Ping(t.Context(), "vm-device-99"); !errors.Is(err, client.ErrUnknownDevice) {
			t.Errorf("a device that never was: %v", err)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("that took %v", d)
		}
		if err := s.AddAgent(t.Context(), "vm-device-01", "vm-device-01"); err != nil {
			t.Fatal(err)
		}
		pings(t, s.Client(), "vm-device-01")
	})
}

// TestPlainNATSClientPings holds that any NATS client can ping with what
// `fleet up` prints: a bare request, without headers.
func TestPlainNATSClientPings(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 1, Auth: auth})
		opts := []nats.Option{nats.CustomInboxPrefix(s.InboxPrefix())}
		if user, password := s.UserPassword(access.Ops); user != "" {
			opts = append(opts, nats.UserInfo(user, password))
		} else {
			opts = append(opts, nats.Token(s.AdminToken()))
		}
		nc, err := nats.Connect(s.NATSURL(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		for _, payload := range []string{"", "{}"} {
			msg, err := nc.Request("device-commands.vm-device-00.ping", []byte(payload), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var reply map[string]any
			if err := json.Unmarshal(msg.Data, &reply); err != nil || reply["device_id"] != "vm-device-00" {
				t.Errorf("reply to %q: %s", payload, msg.Data)
			}
		}
		if _, err := nc.Request("device-commands.vm-device-01.ping", nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("a device that is not there: %v", err)
		}
	})
}

func TestTwoAgentsWithOneIDAreBothReported(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 1, Auth: auth})
		pings(t, s.Client(), "vm-device-00")
		if err := s.AddAgent(t.Context(), "clone", "vm-device-00"); err != nil {
			t.Fatal(err)
		}
		clash := map[string]bool{} // by instance
		testwait.For(t, patience, "IDClash in the status of both", func() bool {
			d, err := s.Client().Device(t.Context(), "vm-device-00")
			if err != nil || d.Status == nil {
				return false
			}
			if slices.ContainsFunc(d.Status.Conditions, func(c command.Condition) bool { return c.Type == command.ConditionIDClash && c.Status }) {
				clash[d.Status.Instance] = true
			}
			return len(clash) >= 1
		})
		// A ping still gets one answer, of either.
		if _, err := s.Client().Ping(t.Context(), "vm-device-00"); err != nil {
			t.Errorf("ping: %v", err)
		}
	})
}

func TestPeopleAreKeptToTheirRoles(t *testing.T) {
	s := up(t, Options{Devices: 1})
	nc, err := s.ConnectAs(t.Context(), access.Ops, access.RoleAuditor)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(nc, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	if _, err := c.Ping(t.Context(), "vm-device-00"); outcome(err) != command.OutcomeDenied {
		t.Errorf("an auditor's ping: %v", err)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("that took %v", d)
	}
	if _, err := s.ConnectAs(t.Context(), access.Data, access.RoleViewer); outcome(err) != command.OutcomeDenied {
		t.Errorf("a viewer in the data account: %v", err)
	}
}

func TestEveryPingIsAudited(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 1, Auth: auth})
		const n = 5
		for range n {
			if _, err := s.Client().Ping(t.Context(), "vm-device-00"); err != nil {
				t.Fatal(err)
			}
		}
		var entries []client.AuditEntry
		testwait.For(t, patience, "audit records", func() bool {
			entries = nil
			for e, err := range s.Client().Audit(t.Context(), client.AuditFilter{}) {
				if err != nil {
					t.Fatal(err)
				}
				entries = append(entries, e)
			}
			return len(entries) >= n
		})
		if gaps := client.CheckChain(entries); len(gaps) > 0 {
			t.Errorf("gaps: %v", gaps)
		}
		user := "ops"
		if auth == Callout {
			user = command.UserName(s.Issuer().URL(), s.Issuer().UserID("admin"))
		}
		for _, e := range entries {
			if e.Record.Caller.User != user || e.Record.Outcome != command.OutcomeOK || e.Record.Verb != command.VerbPing {
				t.Errorf("record %+v", e.Record)
			}
		}
	})
}

func TestTLSIsUsedThroughout(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s := up(t, Options{Devices: 2, Auth: auth, TLS: true})
		for _, d := range s.DeviceIDs() {
			pings(t, s.Client(), d)
		}
		if _, err := s.OperatorConn().TLSConnectionState(); err != nil {
			t.Errorf("the operator's connection: %v", err)
		}
		// Somebody who does not know the authority does not get in.
		if nc, err := nats.Connect(s.NATSURL(), nats.Token("x")); err == nil {
			nc.Close()
			t.Error("a client without the authority connected")
		}
		if auth == Callout && s.Issuer().URL()[:8] != "https://" {
			t.Errorf("the issuer is at %s", s.Issuer().URL())
		}
	})
}

func TestContextOfStartBoundsTheStartOnly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := Start(ctx, Options{Devices: 1, Port: AnyPort})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	cancel()
	pings(t, s.Client(), "vm-device-00")
}

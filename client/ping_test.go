package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestPingCarriesIDAndDeadline(t *testing.T) {
	f := newFleet(t)
	heard := make(chan *nats.Msg, 1)
	f.listen(f.device(), "d1", func(m *nats.Msg) *nats.Msg {
		heard <- m
		return pong("d1")(m)
	})
	c := f.client(f.ops(), client.Options{Timeout: 3 * time.Second, OperatorSub: "alice"})
	r := c.PingOne(t.Context(), "d1")
	if r.Err != nil || r.Reply.DeviceID != "d1" || r.RTT <= 0 {
		t.Fatalf("result = %+v", r)
	}
	h, err := command.ReadRequestHeader((<-heard).Header)
	if err != nil {
		t.Fatal(err)
	}
	if h.RequestID == "" || h.RequestID != r.RequestID || h.OperatorSub != "alice" || h.Protocol != command.Protocol {
		t.Errorf("header = %+v", h)
	}
	if ahead := time.Until(h.Deadline); ahead <= 0 || ahead > 3*time.Second {
		t.Errorf("deadline is %v ahead", ahead)
	}
}

func TestEveryAnswerHasItsOutcome(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	f.listen(dev, "garbage", func(*nats.Msg) *nats.Msg { return &nats.Msg{Data: []byte("pong")} })
	f.listen(dev, "empty", func(*nats.Msg) *nats.Msg { return &nats.Msg{} })
	f.listen(dev, "impostor", pong("someone-else"))
	f.listen(dev, "silent", func(*nats.Msg) *nats.Msg { return nil })
	for _, kind := range command.Kinds() {
		f.listen(dev, "kind-"+strings.ReplaceAll(string(kind), "_", "-"), refuse(kind))
	}
	c := f.client(f.ops(), client.Options{Timeout: 300 * time.Millisecond})
	type want struct {
		device  string
		outcome command.Outcome
		is      error
	}
	cases := []want{
		{"garbage", command.OutcomeFailed, client.ErrBadReply},
		{"empty", command.OutcomeFailed, client.ErrBadReply},
		{"impostor", command.OutcomeFailed, client.ErrBadReply},
		{"silent", command.OutcomeTimeout, client.ErrTimeout},
		{"Not.An.ID", command.OutcomeRejected, client.ErrRejected},
		{"nowhere", command.OutcomeUnknownDevice, client.ErrUnknownDevice},
	}
	for _, kind := range command.Kinds() {
		cases = append(cases, want{"kind-" + strings.ReplaceAll(string(kind), "_", "-"), kind.Outcome(), &command.Error{Outcome: kind.Outcome(), Kind: kind}})
	}
	byDevice := map[string]command.Outcome{}
	var devices []string
	for _, tc := range cases {
		_, err := c.Ping(t.Context(), tc.device)
		var e *command.Error
		if !errors.As(err, &e) || e.Outcome != tc.outcome || !errors.Is(err, tc.is) {
			t.Errorf("%s: err = %v, want %s", tc.device, err, tc.outcome)
		}
		if e != nil && (e.Verb != command.VerbPing || e.DeviceID != tc.device) {
			t.Errorf("%s: error speaks of %s %s", tc.device, e.Verb, e.DeviceID)
		}
		devices, byDevice[tc.device] = append(devices, tc.device), tc.outcome
	}
	for r := range c.PingAll(t.Context(), devices, client.FanOut{}) {
		if r.Outcome() != byDevice[r.Device] {
			t.Errorf("fan-out: %s is %s, want %s", r.Device, r.Outcome(), byDevice[r.Device])
		}
		delete(byDevice, r.Device)
	}
	if len(byDevice) > 0 {
		t.Errorf("fan-out: no result for %v", byDevice)
	}
}

func TestOfflineTellsWhenItWasLastHeardOf(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	f.store(dev, command.StatusSubject("d1"), status("d1"))
	f.store(dev, command.HeartbeatSubject("d1"), heartbeat("d1", time.Minute))
	f.store(dev, command.StatusSubject("d2"), status("d2"))
	c := f.client(f.ops(), client.Options{})
	for device, want := range map[string]string{"d1": "last heartbeat ", "d2": "it never sent a heartbeat"} {
		testwait.For(t, 5*time.Second, "the status to be stored", func() bool {
			_, err := c.Ping(t.Context(), device)
			return errors.Is(err, client.ErrDeviceOffline) && !errors.Is(err, client.ErrUnknownDevice)
		})
		if _, err := c.Ping(t.Context(), device); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", device, err, want)
		}
	}
}

func TestDeviceThatOnlyJustCameUpIsAskedAgain(t *testing.T) {
	for name, ping := range map[string]func(*client.Client) client.PingResult{
		"single": func(c *client.Client) client.PingResult { return c.PingOne(t.Context(), "d1") },
		"fan-out": func(c *client.Client) (r client.PingResult) {
			for r = range c.PingAll(t.Context(), []string{"d1"}, client.FanOut{}) {
			}
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			dev := f.device()
			nc := f.ops()
			c := f.client(nc, client.Options{})
			testwait.For(t, 5*time.Second, "a fresh heartbeat to be stored", func() bool {
				f.store(dev, command.HeartbeatSubject("d1"), heartbeat("d1", 0))
				d, err := c.Device(t.Context(), "d1")
				return err == nil && d.LastSeen < time.Second
			})
			before := nc.Stats().InMsgs
			done := make(chan client.PingResult, 1)
			go func() { done <- ping(c) }()
			// The device takes up its commands only once the first attempt has failed.
			testwait.For(t, 5*time.Second, "the broker's word that nobody listens", func() bool { return nc.Stats().InMsgs > before })
			f.listen(dev, "d1", pong("d1"))
			if r := <-done; r.Err != nil {
				t.Error(r.Err)
			}
		})
	}
}

func TestDeviceThatCameUpLongAgoIsNotAskedAgain(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	f.store(dev, command.HeartbeatSubject("d1"), heartbeat("d1", time.Minute))
	nc := f.ops()
	c := f.client(nc, client.Options{})
	testwait.For(t, 5*time.Second, "the heartbeat to be stored", func() bool {
		_, err := c.Device(t.Context(), "d1")
		return err == nil
	})
	before := nc.Stats().OutMsgs
	if _, err := c.Ping(t.Context(), "d1"); !errors.Is(err, client.ErrDeviceOffline) || errors.Is(err, client.ErrUnknownDevice) {
		t.Errorf("err = %v", err)
	}
	if sent := nc.Stats().OutMsgs - before; sent != 3 { // the ping and two reads
		t.Errorf("%d messages were sent, want 3", sent)
	}
}

func TestBrokersRefusalIsDeniedAtOnce(t *testing.T) {
	f := newFleet(t)
	f.listen(f.device(), "d1", pong("d1"))
	heard := make(chan error, 10)
	nc := f.conn("data", "d", command.InboxPrefix(command.UID("data")), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { heard <- err }))
	c := f.client(nc, client.Options{Timeout: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Ping(ctx, "d1")
	if !errors.Is(err, client.ErrDenied) || !errors.Is(err, nats.ErrPermissionViolation) || ctx.Err() != nil {
		t.Fatalf("err = %v", err)
	}
	for r := range c.PingAll(ctx, []string{"d1", "d2", "d3"}, client.FanOut{}) {
		if r.Outcome() != command.OutcomeDenied {
			t.Errorf("%s: %v", r.Device, r.Err)
		}
	}
	// Others of the connection's errors reach its own handler; those of the client's
	// requests do not.
	if err := nc.Publish("somewhere.else", nil); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; !strings.Contains(err.Error(), "somewhere.else") {
		t.Errorf("the connection's own handler heard %v", err)
	}
}

func TestFanOutGivesEveryDeviceOneOutcome(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	var devices []string
	want := map[string]command.Outcome{}
	for i := range 3000 {
		device := fmt.Sprintf("d-%d", i)
		devices = append(devices, device)
		switch {
		case i%10 == 3:
			want[device] = command.OutcomeUnknownDevice
			continue
		case i%100 == 7:
			want[device] = command.OutcomeTimeout
			f.listenLater(dev, device, func(*nats.Msg) *nats.Msg { return nil })
			continue
		case i%100 == 9:
			want[device] = command.OutcomeBusy
			f.listenLater(dev, device, refuse(command.KindBusy))
			continue
		}
		want[device] = command.OutcomeOK
		f.listenLater(dev, device, pong(device))
	}
	f.flush(dev)
	devices = append(devices, devices[:50]...) // named twice, asked once
	c := f.client(f.ops(), client.Options{Timeout: 2 * time.Second})
	for _, window := range []int{0, 200} {
		got := map[string]command.Outcome{}
		for r := range c.PingAll(t.Context(), devices, client.FanOut{Window: window}) {
			if _, twice := got[r.Device]; twice {
				t.Errorf("window %d: %s has two results", window, r.Device)
			}
			got[r.Device] = r.Outcome()
			if r.Outcome() != want[r.Device] {
				t.Errorf("window %d: %s: %v, want %s", window, r.Device, r.Err, want[r.Device])
			}
		}
		if len(got) != len(want) {
			t.Errorf("window %d: %d results for %d devices", window, len(got), len(want))
		}
	}
}

// listenLater is listen without waiting for the broker.
func (f *fleet) listenLater(nc *nats.Conn, device string, reply func(*nats.Msg) *nats.Msg) {
	f.t.Helper()
	if _, err := nc.Subscribe(command.Subscription(device), func(m *nats.Msg) {
		if r := reply(m); r != nil {
			_ = m.RespondMsg(r)
		}
	}); err != nil {
		f.t.Fatal(err)
	}
}

func TestFanOutEndsWithItsContext(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	var devices []string
	for i := range 200 {
		device := fmt.Sprintf("d-%d", i)
		devices = append(devices, device)
		f.listenLater(dev, device, func(*nats.Msg) *nats.Msg { return nil })
	}
	f.flush(dev)
	c := f.client(f.ops(), client.Options{Timeout: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	n := 0
	for r := range c.PingAll(ctx, devices, client.FanOut{Window: 64}) {
		if n++; r.Outcome() != command.OutcomeFailed || !errors.Is(r.Err, context.Canceled) {
			t.Errorf("%s: %v", r.Device, r.Err)
		}
	}
	if n != len(devices) {
		t.Errorf("%d results for %d devices", n, len(devices))
	}
}

func TestBreakingOffAFanOutLeavesNothing(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	var devices []string
	for i := range 500 {
		devices = append(devices, fmt.Sprintf("d-%d", i))
		f.listenLater(dev, devices[i], pong(devices[i]))
	}
	f.flush(dev)
	c := f.client(f.ops(), client.Options{})
	for range c.PingAll(t.Context(), devices, client.FanOut{}) {
		break
	}
	if _, err := c.Ping(t.Context(), "d-1"); err != nil {
		t.Error(err)
	}
}

func TestLostConnectionEndsEverything(t *testing.T) {
	f := newFleet(t)
	f.listen(f.device(), "d1", func(*nats.Msg) *nats.Msg { return nil })
	nc := f.ops()
	c := f.client(nc, client.Options{Timeout: time.Minute})
	failed := make(chan error, 1)
	go func() {
		_, err := c.Ping(t.Context(), "d1")
		failed <- err
	}()
	testwait.For(t, 5*time.Second, "the ping to be under way", func() bool { return nc.Stats().OutMsgs >= 2 })
	nc.Close()
	if err := <-failed; !errors.Is(err, client.ErrNATS) || !errors.Is(err, client.ErrFailed) {
		t.Errorf("err = %v", err)
	}
	if _, err := c.Ping(t.Context(), "d1"); !errors.Is(err, client.ErrNATS) {
		t.Errorf("after the connection closed: %v", err)
	}
}

func TestClosedClientSaysSo(t *testing.T) {
	f := newFleet(t)
	c := f.client(f.ops(), client.Options{})
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Ping(t.Context(), "d1"); !errors.Is(err, client.ErrClosed) {
		t.Errorf("err = %v", err)
	}
}

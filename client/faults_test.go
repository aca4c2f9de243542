package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// asked plays a device that never answers and tells of each request.
func (f *fleet) asked(device string) <-chan *nats.Msg {
	f.t.Helper()
	heard := make(chan *nats.Msg, 64)
	f.listen(f.device(), device, func(m *nats.Msg) *nats.Msg {
		heard <- m
		return nil
	})
	return heard
}

func TestWhateverEndsTheConnectionEndsTheCommand(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*fleet, *nats.Conn, *client.Client) error
		want error
	}{
		"server shut down":   {func(f *fleet, _ *nats.Conn, _ *client.Client) error { f.srv.Close(); return nil }, client.ErrNATS},
		"connection closed":  {func(_ *fleet, nc *nats.Conn, _ *client.Client) error { nc.Close(); return nil }, client.ErrNATS},
		"connection drained": {func(_ *fleet, nc *nats.Conn, _ *client.Client) error { return nc.Drain() }, client.ErrNATS},
		"client closed":      {func(_ *fleet, _ *nats.Conn, c *client.Client) error { return c.Close() }, client.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			heard := f.asked("d1")
			nc := f.ops()
			c := f.client(nc, client.Options{Timeout: time.Hour})
			ended := make(chan error, 2)
			go func() {
				_, err := c.Ping(t.Context(), "d1")
				ended <- err
			}()
			go func() {
				for r := range c.PingAll(t.Context(), []string{"d1"}, client.FanOut{}) {
					ended <- r.Err
				}
			}()
			<-heard
			<-heard
			if err := tc.end(f, nc, c); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := <-ended; !errors.Is(err, tc.want) || !errors.Is(err, client.ErrFailed) {
					t.Errorf("in flight: %v", err)
				}
			}
			if _, err := c.Ping(t.Context(), "d1"); !errors.Is(err, tc.want) {
				t.Errorf("afterwards: %v", err)
			}
			for r := range c.PingAll(t.Context(), []string{"d1", "d2"}, client.FanOut{}) {
				if !errors.Is(r.Err, tc.want) {
					t.Errorf("afterwards, %s of a fan-out: %v", r.Device, r.Err)
				}
			}
		})
	}
}

func TestClientWorksAgainAfterAReconnect(t *testing.T) {
	f := newFleet(t)
	nc := f.ops()
	c := f.client(nc, client.Options{})
	f.listen(f.device(), "d1", pong("d1"))
	if _, err := c.Ping(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	if err := nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	var last error
	testwait.For(t, 10*time.Second, "a ping after the reconnect", func() bool {
		_, last = c.Ping(t.Context(), "d1")
		return last == nil && nc.Stats().Reconnects == 1
	})
}

func TestTimeoutTellsOfTheLastHeartbeat(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	f.store(dev, command.HeartbeatSubject("d1"), heartbeat("d1", time.Minute))
	f.asked("d1")
	f.asked("d2")
	c := f.client(f.ops(), client.Options{Timeout: 50 * time.Millisecond})
	patient := f.client(f.ops(), client.Options{Timeout: time.Hour})
	testwait.For(t, 5*time.Second, "the heartbeat to be stored", func() bool {
		_, err := c.Device(t.Context(), "d1")
		return err == nil
	})
	for device, want := range map[string]string{"d1": "last heartbeat ", "d2": "it never sent a heartbeat"} {
		_, err := c.Ping(t.Context(), device)
		if !errors.Is(err, client.ErrTimeout) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", device, err, want)
		}
		for r := range c.PingAll(t.Context(), []string{device}, client.FanOut{}) {
			if !errors.Is(r.Err, client.ErrTimeout) || !strings.Contains(r.Err.Error(), want) {
				t.Errorf("%s in a fan-out: %v, want %q in it", device, r.Err, want)
			}
		}
		// The caller's own deadline is told the same way.
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err = patient.Ping(ctx, device)
		cancel()
		if !errors.Is(err, client.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s with a deadline: %v, want %q in it", device, err, want)
		}
	}
}

func TestCancelledContextEndsAPingAtOnce(t *testing.T) {
	f := newFleet(t)
	heard := f.asked("d1")
	c := f.client(f.ops(), client.Options{Timeout: time.Hour})
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Ping(ctx, "d1")
		ended <- err
	}()
	<-heard
	why := errors.New("the operator had enough")
	cancel(why)
	if err := <-ended; !errors.Is(err, context.Canceled) || !errors.Is(err, why) || !errors.Is(err, client.ErrFailed) {
		t.Errorf("err = %v", err)
	}
	if _, err := c.Ping(ctx, "d1"); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that had ended: %v", err)
	}
	if len(heard) > 0 {
		t.Error("a device was asked after the context had ended")
	}
}

func TestWrongInboxPrefixIsDenied(t *testing.T) {
	f := newFleet(t)
	f.listen(f.device(), "d1", pong("d1"))
	c := f.client(f.conn(broker.UserOps, "o", "_INBOX.somebody-else"), client.Options{Timeout: time.Hour})
	for range 2 {
		if _, err := c.Ping(t.Context(), "d1"); !errors.Is(err, client.ErrDenied) || !strings.Contains(err.Error(), "inbox prefix") {
			t.Errorf("err = %v", err)
		}
	}
}

// TestPersonWithoutReadsOrTime uses a broker whose user may ping and nothing
// else.
func TestPersonWithoutReadsOrTimeStillPings(t *testing.T) {
	opts := &server.Options{}
	if err := opts.ProcessConfigString(`
		listen: "127.0.0.1:-1"
		authorization { users: [
			{ user: ops, password: o, permissions { publish: ["device-commands.>"], subscribe: ["_INBOX.x.>"] } }
			{ user: device, password: v }
		] }`); err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	f := &fleet{t, &broker.Server{Server: ns}}
	heard := make(chan *nats.Msg, 8)
	f.listen(f.device(), "d1", func(m *nats.Msg) *nats.Msg {
		heard <- m
		return pong("d1")(m)
	})
	c := f.client(f.conn("ops", "o", "_INBOX.x"), client.Options{Timeout: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Ping(ctx, "d1"); err != nil {
		t.Fatal(err)
	}
	if h, err := command.ReadRequestHeader((<-heard).Header); err != nil || !h.Deadline.IsZero() || h.RequestID == "" {
		t.Errorf("header = %+v, %v", h, err)
	}
	check := func(what string, err error) {
		if !errors.Is(err, client.ErrDeviceOffline) || errors.Is(err, client.ErrUnknownDevice) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = c.Ping(ctx, "d2")
	check("ping", err)
	for r := range c.PingAll(ctx, []string{"d2"}, client.FanOut{}) {
		check("fan-out", r.Err)
	}
	if _, err := c.Devices(ctx, nil); !errors.Is(err, client.ErrDenied) {
		t.Errorf("devices: %v", err)
	}
}

func TestWhatNoDeviceKnowsIsLoggedOnce(t *testing.T) {
	f := newFleet(t)
	f.asked("silent")
	f.listen(f.device(), "busy", refuse(command.KindBusy))
	f.listen(f.device(), "fine", pong("fine"))
	var buf syncbuf.Buffer
	c := f.client(f.ops(), client.Options{Timeout: 500 * time.Millisecond, Logger: slog.New(slog.NewJSONHandler(&buf, nil))})
	devices := []string{"silent", "busy", "fine", "nowhere", "Not.An.ID"}
	for _, d := range devices {
		_, _ = c.Ping(t.Context(), d)
	}
	for range c.PingAll(t.Context(), devices, client.FanOut{}) {
	}
	got := map[string]int{}
	dec := json.NewDecoder(bytes.NewReader(buf.Bytes()))
	for dec.More() {
		var record struct {
			Level, Msg, Verb, Outcome, Reason string
			DeviceID                          string `json:"device_id"`
			RequestID                         string `json:"request_id"`
		}
		if err := dec.Decode(&record); err != nil {
			t.Fatal(err)
		}
		if record.Level != "INFO" || record.Msg != "command" || record.Verb != "ping" || record.RequestID == "" || record.Reason == "" {
			t.Errorf("record %+v", record)
		}
		got[record.DeviceID+" "+record.Outcome]++
	}
	if want := map[string]int{"silent timeout": 2, "nowhere unknown_device": 2}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("logged %v, want %v", got, want)
	}
}

func TestClientsOnOneConnectionDoNotMixTheirReplies(t *testing.T) {
	f := newFleet(t)
	f.listen(f.device(), "d1", pong("d1"))
	handled := make(chan error, 16)
	nc := f.conn("data", "d", command.InboxPrefix(command.UID("data")), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { handled <- err }))
	first := f.client(nc, client.Options{Timeout: time.Hour})
	second := f.client(nc, client.Options{Timeout: time.Hour})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Ping(t.Context(), "d1"); !errors.Is(err, client.ErrDenied) {
		t.Errorf("err = %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	// The handler that was there before is there again, and alone.
	nc.ErrorHandler()(nc, nil, nats.ErrPermissionViolation)
	if err := <-handled; err != nats.ErrPermissionViolation || len(handled) != 0 {
		t.Errorf("handled %v and %d more", err, len(handled))
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	f := newFleetUnprovisioned(t)
	closed := f.ops()
	closed.Close()
	for name, tc := range map[string]struct {
		nc   *nats.Conn
		opts client.Options
	}{
		"no connection":        {nil, client.Options{}},
		"closed connection":    {closed, client.Options{}},
		"negative timeout":     {f.ops(), client.Options{Timeout: -1}},
		"timeout beyond a day": {f.ops(), client.Options{Timeout: 25 * time.Hour}},
		"control characters":   {f.ops(), client.Options{OperatorSub: "a\r\nX-Harmony-Error: x"}},
	} {
		if _, err := client.New(tc.nc, tc.opts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c := f.client(f.ops(), client.Options{})
	for _, fan := range []client.FanOut{{Window: -1}, {Window: 1 << 20}, {Timeout: -1}} {
		n := 0
		for r := range c.PingAll(t.Context(), []string{"d1", "d2"}, fan) {
			if n++; !errors.Is(r.Err, client.ErrRejected) {
				t.Errorf("%+v: %v", fan, r.Err)
			}
		}
		if n != 2 {
			t.Errorf("%+v: %d results", fan, n)
		}
	}
	for range c.PingAll(t.Context(), nil, client.FanOut{}) {
		t.Error("a result for no device")
	}
}

// TestOfflineFleetIsLookedUpInFewReads holds that a fan-out to many devices that
// are away does not read the state of each by itself.
func TestOfflineFleetIsLookedUpInFewReads(t *testing.T) {
	f := newFleet(t)
	const n = 3000
	devices := make([]string, n)
	dev := f.device()
	for i := range devices {
		devices[i] = fmt.Sprintf("d-%d", i)
		if i%2 == 0 {
			f.store(dev, command.HeartbeatSubject(devices[i]), heartbeat(devices[i], time.Hour))
		}
	}
	nc := f.ops()
	c := f.client(nc, client.Options{})
	testwait.For(t, 10*time.Second, "every heartbeat to be stored", func() bool {
		list, err := c.Devices(t.Context(), nil)
		return err == nil && len(list) == n/2
	})
	before := nc.Stats().OutMsgs
	outcomes := map[command.Outcome]int{}
	for r := range c.PingAll(t.Context(), devices, client.FanOut{}) {
		outcomes[r.Outcome()]++
	}
	if outcomes[command.OutcomeOffline] != n/2 || outcomes[command.OutcomeUnknownDevice] != n/2 {
		t.Errorf("outcomes %v", outcomes)
	}
	if reads := nc.Stats().OutMsgs - before - n; reads > n/10 {
		t.Errorf("%d reads for %d devices", reads, n)
	}
}

// TestFiveThousandDevicesAndTheConnectionLost holds that a fan-out that is cut in
// the middle still has one outcome for each device.
func TestFiveThousandDevicesAndTheConnectionLost(t *testing.T) {
	f := newFleet(t)
	dev := f.device()
	var devices []string
	for i := range 5000 {
		device := fmt.Sprintf("d-%d", i)
		devices = append(devices, device)
		if i%3 == 0 {
			f.listenLater(dev, device, func(*nats.Msg) *nats.Msg { return nil })
		} else {
			f.listenLater(dev, device, pong(device))
		}
	}
	f.flush(dev)
	nc := f.ops()
	c := f.client(nc, client.Options{Timeout: time.Hour})
	got := map[string]bool{}
	outcomes := map[command.Outcome]int{}
	for r := range c.PingAll(t.Context(), devices, client.FanOut{Window: 3000}) {
		if got[r.Device] {
			t.Errorf("%s has two results", r.Device)
		}
		got[r.Device] = true
		outcomes[r.Outcome()]++
		if len(got) == 1000 {
			nc.Close()
		}
	}
	if len(got) != len(devices) || outcomes[command.OutcomeFailed] == 0 || outcomes[command.OutcomeOK] < 1000 {
		t.Errorf("%d results for %d devices: %v", len(got), len(devices), outcomes)
	}
}

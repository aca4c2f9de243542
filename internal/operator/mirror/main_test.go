package mirror

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

var passwords = broker.UserPass{Ops: "ops-secret", Data: "data-secret", Device: "device-secret"}

// world is a real broker that can be stopped and started on its port, with
// connections for devices and for whoever writes beside the mirror.
type world struct {
	t       *testing.T
	cfg     broker.Config
	srv     *broker.Server
	devices *nats.Conn
	data    *nats.Conn
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, cfg: broker.Config{Port: broker.AnyPort, StoreDir: t.TempDir(), UserPass: &passwords}}
	w.start()
	t.Cleanup(func() { w.srv.Close() })
	w.devices = w.dial(broker.UserDevice, passwords.Device)
	w.data = w.dial(broker.UserData, passwords.Data)
	w.provision()
	return w
}

func (w *world) start() {
	w.t.Helper()
	srv, err := broker.Start(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.srv, w.cfg.Port = srv, srv.Addr().(*net.TCPAddr).Port
}

func (w *world) provision() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if _, err := broker.Provision(ctx, w.data, broker.ProvisionOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) dial(user, password string, opts ...nats.Option) *nats.Conn {
	w.t.Helper()
	inbox := command.InboxPrefix(command.UID(user))
	if user == broker.UserDevice {
		inbox = command.DeviceInboxPrefix("any")
	}
	nc, err := nats.Connect(w.srv.ClientURL(), append(opts, nats.UserInfo(user, password), nats.CustomInboxPrefix(inbox),
		nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0), nats.RetryOnFailedConnect(true))...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

// mirror starts a mirror, which ends with the test.
func (w *world) mirror(o Options) *Mirror {
	w.t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	m := New(w.dial(broker.UserData, passwords.Data), o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("the mirror ended with %v", err)
			}
		case <-time.After(patience):
			w.t.Error("the mirror does not end")
		}
	})
	return m
}

func (w *world) synced(m *Mirror) *Mirror {
	w.t.Helper()
	select {
	case <-m.Synced():
	case <-time.After(patience):
		w.t.Fatalf("not synced: %v", m.NotCurrent())
	}
	return m
}

func (w *world) publish(subject string, doc any) {
	w.t.Helper()
	data, ok := doc.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(doc); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.devices.Publish(subject, data); err != nil {
		w.t.Fatal(err)
	}
	if err := w.devices.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) status(device string, change func(*command.Status)) {
	w.t.Helper()
	s := command.Status{Schema: command.Schema, DeviceID: device, AgentVersion: "v1", BootID: "boot", Instance: "instance", Runtime: command.RuntimeReady}
	if change != nil {
		change(&s)
	}
	w.publish(command.StatusSubject(device), s)
}

func (w *world) heartbeat(device string) {
	w.t.Helper()
	w.publish(command.HeartbeatSubject(device), command.Heartbeat{Schema: command.Schema, DeviceID: device})
}

// store writes to a bucket as somebody else than the mirror does.
func (w *world) store(subject string, header nats.Header, doc any) uint64 {
	w.t.Helper()
	data, ok := doc.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(doc); err != nil {
			w.t.Fatal(err)
		}
	}
	js, err := w.data.JetStream()
	if err != nil {
		w.t.Fatal(err)
	}
	ack, err := js.PublishMsg(&nats.Msg{Subject: subject, Header: header, Data: data}, nats.AckWait(patience))
	if err != nil {
		w.t.Fatal(err)
	}
	return ack.Sequence
}

// device waits until the device is as ok has it.
func (w *world) device(m *Mirror, id, what string, ok func(Device) bool) Device {
	w.t.Helper()
	var d Device
	testwait.For(w.t, patience, id+" "+what, func() bool {
		d, _ = m.Device(id)
		return ok(d)
	})
	return d
}

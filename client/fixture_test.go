package client_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is a broker with the real accounts, and devices that a test plays.
type fleet struct {
	t   testing.TB
	srv *broker.Server
}

func newFleet(t testing.TB) *fleet {
	t.Helper()
	f := newFleetUnprovisioned(t)
	if _, err := broker.Provision(t.Context(), f.data(), broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	return f
}

func newFleetUnprovisioned(t testing.TB) *fleet {
	t.Helper()
	srv, err := broker.Start(t.Context(), broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), UserPass: &broker.UserPass{Ops: "o", Data: "d", Device: "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return &fleet{t, srv}
}

func (f *fleet) conn(user, password, inbox string, opts ...nats.Option) *nats.Conn {
	f.t.Helper()
	closed := make(chan struct{})
	opts = append([]nats.Option{
		nats.UserInfo(user, password), nats.CustomInboxPrefix(inbox), nats.InProcessServer(f.srv),
		nats.ReconnectWait(20 * time.Millisecond), nats.MaxReconnects(-1),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)
	nc, err := nats.Connect("", opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		nc.Close()
		<-closed
	})
	return nc
}

func (f *fleet) ops(opts ...nats.Option) *nats.Conn {
	return f.conn(broker.UserOps, "o", command.InboxPrefix(command.UID(broker.UserOps)), opts...)
}

func (f *fleet) data() *nats.Conn {
	return f.conn(broker.UserData, "d", command.InboxPrefix(command.UID(broker.UserData)))
}

func (f *fleet) device() *nats.Conn {
	return f.conn(broker.UserDevice, "v", command.DeviceInboxPrefix("d"))
}

func (f *fleet) client(nc *nats.Conn, o client.Options) *client.Client {
	f.t.Helper()
	c, err := client.New(nc, o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return c
}

// listen plays a device that answers with reply; nil does not answer.
func (f *fleet) listen(nc *nats.Conn, device string, reply func(*nats.Msg) *nats.Msg) *nats.Subscription {
	f.t.Helper()
	sub, err := nc.Subscribe(command.Subscription(device), func(m *nats.Msg) {
		if r := reply(m); r != nil {
			_ = m.RespondMsg(r)
		}
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.flush(nc)
	return sub
}

func (f *fleet) flush(nc *nats.Conn) {
	f.t.Helper()
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		f.t.Fatal(err)
	}
}

func pong(device string) func(*nats.Msg) *nats.Msg {
	return func(*nats.Msg) *nats.Msg {
		data, err := json.Marshal(command.PingReply{DeviceID: device, AgentVersion: "0.1.0", UptimeS: 12})
		if err != nil {
			panic(err)
		}
		return &nats.Msg{Data: data}
	}
}

func refuse(kind command.Kind) func(*nats.Msg) *nats.Msg {
	return func(*nats.Msg) *nats.Msg {
		m := nats.NewMsg("")
		m.Data = command.EncodeError(m.Header, command.NewError(kind, "because"))
		return m
	}
}

// store publishes a document as the device would and waits until it can be read.
func (f *fleet) store(device *nats.Conn, subject string, doc any) {
	f.t.Helper()
	data, err := json.Marshal(doc)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := device.Publish(subject, data); err != nil {
		f.t.Fatal(err)
	}
	f.flush(device)
}

func heartbeat(device string, subscribedFor time.Duration) command.Heartbeat {
	return command.Heartbeat{
		Schema: command.Schema, DeviceID: device, Instance: "i", Seq: 1, Time: time.Now(), SubscribedForMS: subscribedFor.Milliseconds(),
	}
}

func status(device string) command.Status {
	return command.Status{Schema: command.Schema, DeviceID: device, AgentVersion: "0.1.0", Protocol: 1, Instance: "i", Runtime: command.RuntimeDisabled}
}

package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// Passwords of the broker that a measurement runs on; it lives for seconds on
// loopback.
var passwords = broker.UserPass{Ops: "ops", Data: "data", Device: "device"}

// startBroker runs the broker with its real accounts and provisions it.
func startBroker(ctx context.Context, dir string) (*broker.Server, error) {
	srv, err := broker.Start(ctx, broker.Config{Port: broker.AnyPort, StoreDir: dir, UserPass: &passwords})
	if err != nil {
		return nil, err
	}
	nc, err := dialData(srv)
	if err != nil {
		srv.Close()
		return nil, err
	}
	defer nc.Close()
	if _, err := broker.Provision(ctx, nc, broker.ProvisionOptions{}); err != nil {
		srv.Close()
		return nil, err
	}
	return srv, nil
}

func dial(srv *broker.Server, user, password, inbox string, extra ...nats.Option) (*nats.Conn, error) {
	opts := append([]nats.Option{nats.UserInfo(user, password), nats.CustomInboxPrefix(inbox), nats.Timeout(10 * time.Second)}, extra...)
	return nats.Connect(srv.ClientURL(), opts...)
}

func dialOps(srv *broker.Server, extra ...nats.Option) (*nats.Conn, error) {
	return dial(srv, broker.UserOps, passwords.Ops, command.InboxPrefix(command.UID(broker.UserOps)), extra...)
}

// dialData connects to where the streams are.
func dialData(srv *broker.Server) (*nats.Conn, error) {
	return dial(srv, broker.UserData, passwords.Data, command.InboxPrefix(command.UID(broker.UserData)))
}

// caller is a client in the operators' account, and its connection, on which bare
// requests go out too.
type caller struct {
	*client.Client
	nc *nats.Conn
}

// patient is the timeout of a caller whom nobody is to be too late for: what is
// measured is how late they are.
const patient = 30 * time.Second

// newCaller connects one; with timeout 0 it has the client's own.
func newCaller(srv *broker.Server, timeout time.Duration) (*caller, error) {
	nc, err := dialOps(srv)
	if err != nil {
		return nil, err
	}
	c, err := client.New(nc, client.Options{Timeout: timeout})
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &caller{Client: c, nc: nc}, nil
}

func (c *caller) close() {
	_ = c.Close()
	c.nc.Close()
}

// barePayload has the size of a ping reply.
var barePayload = []byte(`{"device_id":"vm-device-00","agent_version":"0.1.0","uptime_s":12,"boot_id":"2b1f7a0e-66c5-4d2c-8d3e-0d6a5b7a9c10","instance":"k3vq7m2rj5xd","protocol":1,"runtime":"disabled","time":"2026-01-02T15:04:05.000000000Z","memory_rss_bytes":12345678}`)

// bareResponder answers each command of the device with payload.
func bareResponder(srv *broker.Server, device string, payload []byte, extra ...nats.Option) (*nats.Conn, error) {
	nc, err := dial(srv, broker.UserDevice, passwords.Device, command.DeviceInboxPrefix(device), extra...)
	if err != nil {
		return nil, err
	}
	if _, err := nc.Subscribe(command.Subscription(device), func(m *nats.Msg) { _ = m.Respond(payload) }); err != nil {
		nc.Close()
		return nil, err
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		nc.Close()
		return nil, err
	}
	return nc, nil
}

// bareResponders are n of them on connections without file descriptors. They are
// given with an error too, for whoever closes them.
func bareResponders(srv *broker.Server, n int) (conns []*nats.Conn, ids []string, err error) {
	for i := range n {
		id := fmt.Sprintf("bare-%05d", i)
		nc, err := bareResponder(srv, id, barePayload, nats.InProcessServer(srv))
		if err != nil {
			return conns, ids, err
		}
		conns, ids = append(conns, nc), append(ids, id)
	}
	return conns, ids, nil
}

// barePing is one plain request.
func barePing(nc *nats.Conn, device string) (time.Duration, error) {
	start := time.Now()
	if _, err := nc.Request(command.Subject(device, command.VerbPing), nil, 5*time.Second); err != nil {
		return 0, fmt.Errorf("bare request to %s: %w", device, err)
	}
	return time.Since(start), nil
}

// bareScatter asks every device at once, with one wildcard reply subscription,
// and returns when the last answer is in. A window keeps the number in flight
// where the client library's buffers are not the bound.
func bareScatter(ctx context.Context, nc *nats.Conn, devices []string) (time.Duration, error) {
	const window = 4096
	slots := make(chan struct{}, window)
	done := make(chan struct{}, len(devices))
	inbox := nc.NewInbox()
	sub, err := nc.Subscribe(inbox+".*", func(*nats.Msg) {
		<-slots
		done <- struct{}{}
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	start := time.Now()
	for i, device := range devices {
		slots <- struct{}{}
		if err := nc.PublishRequest(command.Subject(device, command.VerbPing), fmt.Sprintf("%s.%d", inbox, i), nil); err != nil {
			return 0, err
		}
	}
	for range devices {
		select {
		case <-done:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(30 * time.Second):
			return 0, fmt.Errorf("bare scatter lost an answer")
		}
	}
	return time.Since(start), nil
}

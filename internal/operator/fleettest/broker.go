// Package fleettest gives the operator's tests a real broker and as many devices as
// they like, which are simulated: they publish the statuses and heartbeats that agents
// do, and follow their desired state as agents do, and run nothing.
//
//	b := fleettest.StartBroker(t)
//	fleet := b.Fleet(t, fleettest.Options{Devices: 20})
//	m := mirror.New(b.Data(t), mirror.Options{})
//	…
//	fleet.Leave("device-00003")
//
// What a device makes of a score is told by the image of its services (see [React]),
// or by a function of the test's.
package fleettest

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// patience bounds whatever the broker is asked.
const patience = 30 * time.Second

var passwords = broker.UserPass{Ops: "ops-secret", Data: "data-secret", Device: "device-secret"}

// Broker is a real broker in this process, with static users.
type Broker struct {
	cfg broker.Config
	srv *broker.Server
}

// StartBroker starts a broker with all streams and buckets; it ends with the test.
func StartBroker(tb testing.TB) *Broker {
	tb.Helper()
	b := &Broker{cfg: broker.Config{Port: broker.AnyPort, StoreDir: tb.TempDir(), UserPass: &passwords}}
	b.Start(tb)
	tb.Cleanup(b.Stop)
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	if _, err := broker.Provision(ctx, b.Data(tb), broker.ProvisionOptions{}); err != nil {
		tb.Fatal(err)
	}
	return b
}

// Stop ends it and keeps what it stored, until Start.
func (b *Broker) Stop() { b.srv.Close() }

// Start starts it again, on the same port.
func (b *Broker) Start(tb testing.TB) {
	tb.Helper()
	srv, err := broker.Start(tb.Context(), b.cfg)
	if err != nil {
		tb.Fatal(err)
	}
	b.srv, b.cfg.Port = srv, srv.Addr().(*net.TCPAddr).Port
}

// URL is where it listens, also after a restart.
func (b *Broker) URL() string { return b.srv.ClientURL() }

// Data is a connection in the account of the operator; it goes with the test.
func (b *Broker) Data(tb testing.TB) *nats.Conn {
	return b.dial(tb, broker.UserData, passwords.Data, command.InboxPrefix(command.UID(broker.UserData)))
}

// DataLogin are the user and password of that account.
func (b *Broker) DataLogin() (user, password string) { return broker.UserData, passwords.Data }

func (b *Broker) dial(tb testing.TB, user, password, inbox string, more ...nats.Option) *nats.Conn {
	tb.Helper()
	nc, err := nats.Connect(b.URL(), append([]nats.Option{
		nats.UserInfo(user, password), nats.CustomInboxPrefix(inbox), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0),
	}, more...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	return nc
}

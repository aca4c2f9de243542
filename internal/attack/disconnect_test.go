package attack

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// A controller on one server of a cluster learns of the devices of another.
func TestTheEndOfAConnectionCrossesRoutes(t *testing.T) {
	a := newArena(t, 2, variant{})
	events, err := a.as(controller).SubscribeSync(access.Disconnected)
	must(t, err)
	must(t, a.as(controller).Flush())
	a.settle()
	nc, err := nats.Connect(a.servers[1].ClientURL(), nats.UserInfo(d3.name, password), nats.Name(command.ConnectionName("d3")))
	must(t, err)
	nc.Close()
	m, err := events.NextMsg(patience)
	must(t, err)
	if d, err := broker.ReadDisconnect(m.Data); err != nil || d.Device != "d3" {
		t.Errorf("%+v, %v: %s", d, err, m.Data)
	}
}

package natsconn_test

import (
	"errors"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestConnectionsOfAGroupCloseTogether(t *testing.T) {
	srv := startBroker(t)
	var group natsconn.Group
	first, err := group.Connect(t.Context(), opsConfig(srv, "o"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := group.Connect(t.Context(), opsConfig(srv, "o"))
	if err != nil {
		t.Fatal(err)
	}
	first.Close() // by whoever asked for it
	if second.IsClosed() {
		t.Error("one was closed, and the other with it")
	}
	for range 2 {
		group.Close()
	}
	if !second.IsClosed() {
		t.Error("the group is closed, and its connection is not")
	}
	if nc, err := group.Connect(t.Context(), opsConfig(srv, "o")); !errors.Is(err, natsconn.ErrGroupClosed) {
		t.Errorf("a connection of a closed group: %v, %v", nc, err)
	}
	testwait.For(t, 10*time.Second, "the broker to have no connection", func() bool { return srv.NumClients() == 0 })
}

package natsconn

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Soon are options of a connection that comes back quickly: for one or few clients of
// a broker nearby, which no herd has to be kept from.
func Soon() []nats.Option {
	return []nats.Option{nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond)}
}

// ErrGroupClosed is what Group.Connect fails with after Group.Close.
var ErrGroupClosed = errors.New("what this connection belongs to is being closed")

// Group holds connections that are closed together, at the latest. The zero value is
// ready. Its methods may be called from any goroutine.
type Group struct {
	mu     sync.Mutex
	closed bool
	conns  []*nats.Conn
}

// Connect is [Connect], for a connection of the group. Whoever asked for it may close
// it before the group is closed.
func (g *Group) Connect(ctx context.Context, cfg Config) (*nats.Conn, error) {
	nc, err := Connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		nc.Close()
		return nil, ErrGroupClosed
	}
	g.conns = append(slices.DeleteFunc(g.conns, (*nats.Conn).IsClosed), nc)
	return nc, nil
}

// Close closes all connections of the group. Those that are being made are closed as
// soon as they are there. It may be called more than once.
func (g *Group) Close() {
	g.mu.Lock()
	conns := g.conns
	g.closed, g.conns = true, nil
	g.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
}

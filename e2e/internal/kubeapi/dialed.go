package kubeapi

import (
	"context"
	"errors"
	"net"
	"sync"
)

// dialed are the connections of a client, so that none outlives it: closing those that
// are idle would miss one whose last answer has just been read.
type dialed struct {
	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

// dialedConn is a connection that is off the list once it is closed.
type dialedConn struct {
	net.Conn
	of *dialed
}

func (d *dialed) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	d.conns[conn] = true
	return dialedConn{conn, d}, nil
}

func (c dialedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c.Conn)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (d *dialed) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for conn := range d.conns {
		_ = conn.Close() // it is not used any more
	}
}

// Package engine reaches the container engine, Podman or Docker, by the Docker
// Engine API that both speak on their socket.
//
//	e, err := engine.Open("unix:///run/podman/podman.sock")
//	defer e.Close()
//	err = e.Ping(ctx)
package engine

import (
	"context"
	"fmt"

	"github.com/docker/docker/client"
)

// DefaultSocket is where Podman listens when it runs as root.
const DefaultSocket = "unix:///run/podman/podman.sock"

// Engine is a client of one engine. It is safe for concurrent use.
type Engine struct {
	socket string
	client *client.Client
}

// Open makes a client of the engine that listens on socket; empty means
// [DefaultSocket]. It does not connect: the engine may come up later. The error
// is for a socket that is not an address.
func Open(socket string) (*Engine, error) {
	if socket == "" {
		socket = DefaultSocket
	}
	c, err := client.NewClientWithOpts(client.WithHost(socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("container engine at %q: %w; want an address such as %s", socket, err, DefaultSocket)
	}
	return &Engine{socket: socket, client: c}, nil
}

// Ping fails where the engine does not answer by the end of ctx. The version of
// the API is agreed upon with the first answer.
func (e *Engine) Ping(ctx context.Context) error {
	if _, err := e.client.Ping(ctx); err != nil {
		return fmt.Errorf("container engine at %s: %w", e.socket, err)
	}
	return nil
}

// Close lets go of idle connections.
func (e *Engine) Close() error { return e.client.Close() }

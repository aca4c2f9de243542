// Package engine reaches the container engine, Podman or Docker, by the Docker
// Engine API that both speak on their socket. It is the only place of the
// project that does.
//
//	e, err := engine.Open("unix:///run/podman/podman.sock")
//	defer e.Close()
//	list, err := e.Containers(ctx, "vm-device-00")
//	id, err := e.Create(ctx, engine.Spec{…})
//	err = e.Start(ctx, id)
//
// Containers that it makes carry [Labels], which say whose they are; it lists
// only those of one device, and whoever uses it acts on nothing else. Errors
// match [ErrNotFound], [ErrConflict] and [ErrUnavailable] where they are such.
package engine

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// DefaultSocket is where Podman listens when it runs as root.
const DefaultSocket = "unix:///run/podman/podman.sock"

// What an error of the engine may be, for errors.Is.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict") // for example a name in use
	ErrUnavailable = errors.New("container engine unavailable")
)

// Engine is a client of one engine. It is safe for concurrent use.
type Engine struct {
	socket string
	client *client.Client
	// turn is held while the version of the API is agreed upon, once: the client's
	// own way to do that races with its other requests.
	turn   chan struct{}
	agreed atomic.Bool
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
	return &Engine{socket: socket, client: c, turn: make(chan struct{}, 1)}, nil
}

// api is the client, once the version of the API is agreed upon.
func (e *Engine) api(ctx context.Context) (*client.Client, error) {
	if e.agreed.Load() {
		return e.client, nil
	}
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e.agreed.Load() {
		return e.client, nil
	}
	answer, err := e.client.Ping(ctx)
	if err != nil {
		return nil, e.fault(err, "container engine at "+e.socket)
	}
	e.client.NegotiateAPIVersionPing(answer)
	e.agreed.Store(true)
	return e.client, nil
}

// Ping fails where the engine does not answer by the end of ctx.
func (e *Engine) Ping(ctx context.Context) error {
	c, err := e.api(ctx)
	if err == nil {
		_, err = c.Ping(ctx)
		err = e.fault(err, "container engine at "+e.socket)
	}
	return err
}

// Close lets go of idle connections.
func (e *Engine) Close() error { return e.client.Close() }

// fault says what failed, and what kind of error it is.
func (e *Engine) fault(err error, what string) error {
	switch {
	case err == nil:
		return nil
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("%s: %w", what, kinded{err, ErrUnavailable})
	case noStorage.MatchString(err.Error()):
		return fmt.Errorf("%s: %w", what, &Broken{ID: noStorage.FindStringSubmatch(err.Error())[1], Err: err})
	case errdefs.IsNotFound(err), noSuch(err):
		return fmt.Errorf("%s: %w", what, kinded{err, ErrNotFound})
	case errdefs.IsConflict(err), nameInUse(err):
		return fmt.Errorf("%s: %w", what, kinded{err, ErrConflict})
	}
	return fmt.Errorf("%s: %w", what, err)
}

// nameInUse tells whether err says that a name is taken, which Podman calls an
// internal error too.
func nameInUse(err error) bool {
	return errdefs.IsInternal(err) && strings.Contains(err.Error(), "is already in use by")
}

// noSuch tells whether err says that something is gone. Podman calls that an
// internal error where it went between two steps of one request.
func noSuch(err error) bool {
	text := err.Error()
	return errdefs.IsInternal(err) && (strings.Contains(text, "no such container") || strings.Contains(text, "no such image"))
}

// Broken is the error of a question that the engine cannot answer, be it a list of
// others too, because one container is in its records and not in its storage: a
// Podman that is killed amid a removal leaves that. [Engine.Remove] finishes it.
type Broken struct {
	ID  string
	Err error
}

func (b *Broken) Error() string { return b.Err.Error() }
func (b *Broken) Unwrap() error { return b.Err }

// noStorage is how Podman says so.
var noStorage = regexp.MustCompile(`getting container from store "([0-9a-f]{64})": container not known`)

// kinded is an error of the engine with its kind.
type kinded struct {
	error
	kind error
}

func (k kinded) Unwrap() []error { return []error{k.error, k.kind} }

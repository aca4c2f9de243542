package enginefake

import (
	"context"
	"sync"

	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

// Call is one call of the engine.
type Call struct {
	Op     string // list, inspect, create, start, stop, remove, image, pull, check, monitor or watch
	Target string // a container's name at create, its id later, an image, or a device
}

// Writes tells whether the call changes something.
func (c Call) Writes() bool {
	switch c.Op {
	case "create", "start", "stop", "remove", "pull":
		return true
	}
	return false
}

// Hook is told of a call; an error becomes the call's.
type Hook func(ctx context.Context, c Call) error

// Hooked passes calls on to Engine, by way of its hooks.
type Hooked struct {
	Engine reconcile.Engine

	mu            sync.Mutex
	before, after Hook
	calls         []Call
}

var _ reconcile.Engine = (*Hooked)(nil)

// Before sets what is called before each call, instead of which its error is
// given. nil: nothing.
func (h *Hooked) Before(f Hook) { h.mu.Lock(); defer h.mu.Unlock(); h.before = f }

// After sets what is called after each call that was made without an error.
func (h *Hooked) After(f Hook) { h.mu.Lock(); defer h.mu.Unlock(); h.after = f }

// Calls are all calls so far, without those that a hook refused.
func (h *Hooked) Calls() []Call {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Call(nil), h.calls...)
}

// Count counts the calls that f selects.
func (h *Hooked) Count(f func(Call) bool) (n int) {
	for _, c := range h.Calls() {
		if f(c) {
			n++
		}
	}
	return n
}

func (h *Hooked) do(ctx context.Context, op, target string, f func() error) error {
	c := Call{op, target}
	h.mu.Lock()
	before, after := h.before, h.after
	h.mu.Unlock()
	if before != nil {
		if err := before(ctx, c); err != nil {
			return err
		}
	}
	h.mu.Lock()
	h.calls = append(h.calls, c)
	h.mu.Unlock()
	if err := f(); err != nil || after == nil {
		return err
	}
	return after(ctx, c)
}

// Containers is [engine.Engine.Containers].
func (h *Hooked) Containers(ctx context.Context, device string) (list []engine.Container, err error) {
	err = h.do(ctx, "list", device, func() (err error) {
		list, err = h.Engine.Containers(ctx, device)
		return err
	})
	return list, err
}

// Inspect is [engine.Engine.Inspect].
func (h *Hooked) Inspect(ctx context.Context, id string) (d engine.Details, err error) {
	err = h.do(ctx, "inspect", id, func() (err error) {
		d, err = h.Engine.Inspect(ctx, id)
		return err
	})
	return d, err
}

// Create is [engine.Engine.Create].
func (h *Hooked) Create(ctx context.Context, s engine.Spec) (id string, err error) {
	err = h.do(ctx, "create", s.Name, func() (err error) {
		id, err = h.Engine.Create(ctx, s)
		return err
	})
	return id, err
}

// Start is [engine.Engine.Start].
func (h *Hooked) Start(ctx context.Context, id string) error {
	return h.do(ctx, "start", id, func() error { return h.Engine.Start(ctx, id) })
}

// Stop is [engine.Engine.Stop].
func (h *Hooked) Stop(ctx context.Context, id string) error {
	return h.do(ctx, "stop", id, func() error { return h.Engine.Stop(ctx, id) })
}

// Remove is [engine.Engine.Remove].
func (h *Hooked) Remove(ctx context.Context, id string) error {
	return h.do(ctx, "remove", id, func() error { return h.Engine.Remove(ctx, id) })
}

// Image is [engine.Engine.Image].
func (h *Hooked) Image(ctx context.Context, ref string) (i engine.Image, err error) {
	err = h.do(ctx, "image", ref, func() (err error) {
		i, err = h.Engine.Image(ctx, ref)
		return err
	})
	return i, err
}

// Pull is [engine.Engine.Pull].
func (h *Hooked) Pull(ctx context.Context, ref string, progress func(engine.Progress)) error {
	return h.do(ctx, "pull", ref, func() error { return h.Engine.Pull(ctx, ref, progress) })
}

// CheckHealth is [engine.Engine.CheckHealth].
func (h *Hooked) CheckHealth(ctx context.Context, id string) error {
	return h.do(ctx, "check", id, func() error { return h.Engine.CheckHealth(ctx, id) })
}

// KillMonitor is [engine.Engine.KillMonitor].
func (h *Hooked) KillMonitor(ctx context.Context, id string) (killed bool, err error) {
	err = h.do(ctx, "monitor", id, func() (err error) {
		killed, err = h.Engine.KillMonitor(ctx, id)
		return err
	})
	return killed, err
}

// Watch is [engine.Engine.Watch].
func (h *Hooked) Watch(ctx context.Context, device string, changed func(string)) error {
	return h.do(ctx, "watch", device, func() error { return h.Engine.Watch(ctx, device, changed) })
}

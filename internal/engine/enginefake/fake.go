// Package enginefake holds what tests of faults need of a container engine:
// [Memory], one that exists only in memory, and [Hooked], which lets a test look
// at, fail or stop each call of any engine, a real one too.
//
//	e := &enginefake.Memory{}
//	h := &enginefake.Hooked{Engine: e}
//	h.Before(func(ctx context.Context, call enginefake.Call) error { … })
package enginefake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

// Memory is an engine in memory. Its zero value has no images and nobody's
// containers.
type Memory struct {
	mu         sync.Mutex
	containers map[string]*engine.Details
	images     map[string]engine.Image
	registry   map[string]engine.Image
	watchers   map[chan string]bool
	serial     int
}

var _ reconcile.Engine = (*Memory)(nil)

// AddImage makes an image that the engine has.
func (m *Memory) AddImage(ref, id string) { m.add(&m.images, ref, id) }

// Publish makes an image that can be pulled.
func (m *Memory) Publish(ref, id string) { m.add(&m.registry, ref, id) }

func (m *Memory) add(to *map[string]engine.Image, ref, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *to == nil {
		*to = map[string]engine.Image{}
	}
	(*to)[ref] = engine.Image{ID: id, Digest: "sha256:" + id}
}

// Exit ends a container as its process would.
func (m *Memory) Exit(id string, code int) {
	m.change(id, func(d *engine.Details) { d.State, d.ExitCode, d.FinishedAt = engine.StateExited, code, time.Now() })
}

// SetState puts a container into a state.
func (m *Memory) SetState(id string, s engine.State) {
	m.change(id, func(d *engine.Details) { d.State = s })
}

// Unpublish takes an image out of the registry.
func (m *Memory) Unpublish(ref string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.registry, ref)
}

// change changes a container and tells the watchers.
func (m *Memory) change(id string, f func(*engine.Details)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.containers[id]; d != nil {
		f(d)
	}
	m.tell(id)
}

// tell is called with mu held.
func (m *Memory) tell(id string) {
	for w := range m.watchers {
		select {
		case w <- id:
		default: // events are a hint: a slow reader misses some
		}
	}
}

// All lists every container, sorted by name.
func (m *Memory) All() []engine.Details {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]engine.Details, 0, len(m.containers))
	for _, d := range m.containers {
		all = append(all, *d)
	}
	slices.SortFunc(all, func(a, b engine.Details) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Containers is [engine.Engine.Containers].
func (m *Memory) Containers(_ context.Context, device string) ([]engine.Container, error) {
	var list []engine.Container
	for _, d := range m.All() {
		if d.Labels.Device == device {
			list = append(list, d.Container)
		}
	}
	return list, nil
}

// find finds a container by id or, as engines do, by name; nil: there is none. It
// is called with mu held.
func (m *Memory) find(id string) *engine.Details {
	for _, d := range m.containers {
		if d.ID == id || d.Name == id {
			return d
		}
	}
	return nil
}

// Inspect is [engine.Engine.Inspect].
func (m *Memory) Inspect(_ context.Context, id string) (engine.Details, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.find(id)
	if d == nil {
		return engine.Details{}, fmt.Errorf("container %s: %w", id, engine.ErrNotFound)
	}
	return *d, nil
}

// Create is [engine.Engine.Create].
func (m *Memory) Create(_ context.Context, s engine.Spec) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	image, ok := m.images[s.Service.Image]
	if !ok {
		return "", fmt.Errorf("image %s: %w", s.Service.Image, engine.ErrNotFound)
	}
	for _, d := range m.containers {
		if d.Name == s.Name {
			return "", fmt.Errorf("container %s: %w", s.Name, engine.ErrConflict)
		}
	}
	if m.containers == nil {
		m.containers = map[string]*engine.Details{}
	}
	m.serial++
	id := fmt.Sprintf("c%04d", m.serial)
	m.containers[id] = &engine.Details{Container: engine.Container{
		ID: id, Name: s.Name, Labels: s.Labels, Image: s.Service.Image, ImageID: image.ID, State: engine.StateCreated,
		Created: time.Unix(int64(m.serial), 0),
	}, StopGrace: engine.StopGrace(s.Service)}
	m.tell(id)
	return id, nil
}

// Start is [engine.Engine.Start]. A host port that another container has is
// taken.
func (m *Memory) Start(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.containers[id]
	if d == nil {
		return fmt.Errorf("container %s: %w", id, engine.ErrNotFound)
	}
	for _, other := range m.containers {
		if other.ID == id || other.State != engine.StateRunning {
			continue
		}
		for _, claim := range d.Labels.Claims {
			if slices.Contains(other.Labels.Claims, claim) {
				return fmt.Errorf("start container %s: %s: address already in use", id, claim)
			}
		}
	}
	d.State, d.StartedAt = engine.StateRunning, time.Now()
	m.tell(id)
	return nil
}

// Stop is [engine.Engine.Stop].
func (m *Memory) Stop(_ context.Context, id string) error {
	m.change(id, func(d *engine.Details) {
		if d.State == engine.StateRunning {
			d.State, d.ExitCode, d.FinishedAt = engine.StateExited, 143, time.Now()
		}
	})
	return nil
}

// Remove is [engine.Engine.Remove].
func (m *Memory) Remove(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.find(id); d != nil {
		delete(m.containers, d.ID)
		m.tell(d.ID)
	}
	return nil
}

// Image is [engine.Engine.Image].
func (m *Memory) Image(_ context.Context, ref string) (engine.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, i := range m.images {
		if name == ref || i.ID == ref {
			return i, nil
		}
	}
	return engine.Image{}, fmt.Errorf("image %s: %w", ref, engine.ErrNotFound)
}

// Pull is [engine.Engine.Pull].
func (m *Memory) Pull(_ context.Context, ref string, progress func(engine.Progress)) error {
	m.mu.Lock()
	i, ok := m.registry[ref]
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("pull image %s: manifest unknown", ref)
	}
	progress(engine.Progress{Text: "Downloading", Done: 1, Size: 2})
	m.AddImage(ref, i.ID)
	return nil
}

// CheckHealth is [engine.Engine.CheckHealth]; this engine does that itself.
func (m *Memory) CheckHealth(context.Context, string) error { return errors.ErrUnsupported }

// KillMonitor is [engine.Engine.KillMonitor]; this engine has none.
func (m *Memory) KillMonitor(context.Context, string) (bool, error) { return false, nil }

// Watch is [engine.Engine.Watch].
func (m *Memory) Watch(ctx context.Context, _ string, changed func(string)) error {
	events := make(chan string, 64)
	m.mu.Lock()
	if m.watchers == nil {
		m.watchers = map[chan string]bool{}
	}
	m.watchers[events] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.watchers, events)
		m.mu.Unlock()
	}()
	changed("")
	for {
		select {
		case id := <-events:
			changed(id)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

package mirror

import "sync"

// Changes collects the ids of devices of which something has changed. Ids are kept
// once, however often a device changes, until they are taken; the mirror never waits
// for whoever takes them.
type Changes struct {
	ready chan struct{} // holds a token while ids is not empty
	leave func(*Changes)

	mu  sync.Mutex
	ids map[string]struct{}
}

// Subscribe gives the changes from now on. The ids of all devices that are known
// already are among them. Changes of a device's last heartbeat alone are not: it
// is read with the device when something else changes.
func (m *Mirror) Subscribe() *Changes {
	c := &Changes{ready: make(chan struct{}, 1), ids: map[string]struct{}{}}
	c.leave = func(c *Changes) {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.changes, c)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes[c] = struct{}{}
	for id := range m.devices {
		c.add(id)
	}
	return c
}

// Ready has a token when there is something to take.
func (c *Changes) Ready() <-chan struct{} { return c.ready }

// Take returns the ids, in no order, and forgets them; nil where there are none.
func (c *Changes) Take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ids) == 0 {
		return nil
	}
	ids := make([]string, 0, len(c.ids))
	for id := range c.ids {
		ids = append(ids, id)
	}
	c.ids = map[string]struct{}{}
	return ids
}

// Close ends the subscription.
func (c *Changes) Close() { c.leave(c) }

func (c *Changes) add(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids[id] = struct{}{}
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

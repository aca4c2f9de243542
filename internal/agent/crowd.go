package agent

import (
	"sync"
	"time"
)

// crowd keeps one caller from filling the queue of commands for the others. Each
// command is counted for its caller; while many wait, one whose share of the
// latest is more than half is refused without more ado, which empties the queue
// several times faster than serving does. The zero value is ready.
type crowd struct {
	mu     sync.Mutex
	since  time.Time
	total  int
	counts map[string]int // by caller's UID
}

const (
	crowdWindow  = time.Second // how long counts are kept
	crowdAtLeast = 512         // commands that a caller may send in that time in any case
)

// presses tells whether the caller is the one who fills the queue, of which
// waiting commands are left and that holds most.
func (c *crowd) presses(uid string, now time.Time, waiting, most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.since) >= crowdWindow {
		c.since, c.total = now, 0
		clear(c.counts)
	}
	if c.counts == nil {
		c.counts = make(map[string]int)
	}
	c.total++
	c.counts[uid]++
	mine := c.counts[uid]
	return waiting > most/4 && mine > crowdAtLeast && 2*mine > c.total
}

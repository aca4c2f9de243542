package agent

import (
	"fmt"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// unverifiedVerb stands in audit for the verb of a message whose sender cannot be
// named. Any device can have such messages delivered here, under any verb: were
// they recorded under that verb, they would push the records of true commands out
// of the stream, which keeps a number of them for each.
const unverifiedVerb command.Verb = "unverified"

// What senders who cannot be named leave in audit and log at most; the rest is
// counted.
const (
	strangersMost   = 100
	strangersWindow = 10 * time.Second
)

// strangers does that counting. The zero value is ready.
type strangers struct {
	mu    sync.Mutex
	since time.Time
	kept  int
	left  int // since the last that was kept
}

// keep tells whether the denial is recorded, and adds to its reason how many
// were not.
func (s *strangers) keep(a *answer, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.since) >= strangersWindow {
		s.since, s.kept = now, 0
	}
	if s.kept == strangersMost {
		s.left++
		return false
	}
	s.kept++
	if s.left > 0 {
		a.reason = fmt.Sprintf("%s; %d more from senders that cannot be named were not recorded", a.reason, s.left)
		s.left = 0
	}
	return true
}

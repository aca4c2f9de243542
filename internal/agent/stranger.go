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

// What refusals without bound leave in audit and log at most, such as those of
// senders who cannot be named; the rest is counted.
const (
	sampleMost   = 100
	sampleWindow = 10 * time.Second
)

// sample does that counting.
type sample struct {
	of string // what is counted, for the record

	mu    sync.Mutex
	since time.Time
	kept  int
	left  int // since the last that was kept
}

// keep tells whether the refusal is recorded, and adds to its reason how many
// were not.
func (s *sample) keep(a *answer, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.since) >= sampleWindow {
		s.since, s.kept = now, 0
	}
	if s.kept == sampleMost {
		s.left++
		return false
	}
	s.kept++
	if s.left > 0 {
		if a.reason == "" {
			a.reason = a.err.Message
		}
		a.reason = fmt.Sprintf("%s; %d more %s were not recorded", a.reason, s.left, s.of)
		s.left = 0
	}
	return true
}

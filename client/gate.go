package client

import (
	"errors"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Abort says when a fan-out that goes wrong asks no further device: when more
// than Share of the devices that have ended did not end well, and at least Min
// have ended. A device ends well with [command.OutcomeOK] and, where it ran a
// program, exit code 0.
type Abort struct {
	Share float64 // 0 to 1; 0: the first that does not end well is one too many
	Min   int     // 0 is as 1
}

func (a *Abort) check() *command.Error {
	if a != nil && (!(a.Share >= 0 && a.Share <= 1) || a.Min < 0) {
		return fault(command.OutcomeRejected, nil, "fan-out: abort after %v of at least %d: want a share of 0 to 1, and 0 devices or more", a.Share, a.Min)
	}
	return nil
}

// gate lets the devices of a fan-out be asked: not faster than its rate, and none
// once it was stopped or aborted.
type gate struct {
	interval time.Duration // between two devices; 0: no limit
	next     time.Time     // when the next one may be asked
	stop     <-chan struct{}
	abort    *Abort
	total    int // devices that have ended after they were asked
	bad      int // of these, that did not end well
}

// catchUp is how far a fan-out may lag behind its rate and make up for it: a
// timer is late by a little, and would lower the rate each time.
const catchUp = 50 * time.Millisecond

func newGate(f FanOut) gate {
	g := gate{stop: f.Stop, abort: f.Abort}
	if f.Rate > 0 {
		g.interval = time.Duration(float64(time.Second) / f.Rate)
	}
	return g
}

// pass tells whether a device may be asked now; it then counts as asked.
func (g *gate) pass(now time.Time) bool {
	if g.interval == 0 {
		return true
	}
	if g.next.After(now) {
		return false
	}
	if least := now.Add(-catchUp); g.next.Before(least) {
		g.next = least
		if g.interval > catchUp {
			g.next = now
		}
	}
	g.next = g.next.Add(g.interval)
	return true
}

// shut is why no further device is asked; nil: they are.
func (g *gate) shut() *command.Error {
	select {
	case <-g.stop:
		return fault(command.OutcomeFailed, ErrNotStarted, "not asked: stopped before its turn")
	default:
	}
	if a := g.abort; a != nil && g.bad > 0 && g.total >= a.Min && float64(g.bad) > a.Share*float64(g.total) {
		return fault(command.OutcomeFailed, ErrNotStarted, "not asked: aborted, since %d of %d devices did not end well", g.bad, g.total)
	}
	return nil
}

// ended counts a device whose result is known.
func (g *gate) ended(good bool, err *command.Error) {
	if err != nil && errors.Is(err, ErrNotStarted) {
		return
	}
	g.total++
	if !good {
		g.bad++
	}
}

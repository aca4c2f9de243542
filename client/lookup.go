package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// lookupBudget bounds the look at stored heartbeats that makes an error message
// complete; it may run a little past the command's own timeout.
const lookupBudget = 500 * time.Millisecond

// freshFor is how long after it took up its commands a device may still be
// invisible to parts of the broker.
const freshFor = 5 * time.Second

// lastSeen is what the broker keeps of a device.
type lastSeen struct {
	heartbeat command.Heartbeat
	at        time.Time // when the broker stored the heartbeat; zero: none
	status    bool      // a status was stored
	readable  bool      // the broker let this identity look
}

// lookup reads the last heartbeat of each device, and whether it ever reported a
// status: two requests for up to a thousand devices. It never fails; where the
// role does not allow it, or time runs out, the entries say so.
func (c *Client) lookup(ctx context.Context, devices []string) map[string]lastSeen {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupBudget)
	defer cancel()
	beats, statuses := make([]string, len(devices)), make([]string, len(devices))
	for i, d := range devices {
		beats[i], statuses[i] = command.HeartbeatSubject(d), command.StatusSubject(d)
	}
	var (
		hb, st       map[string]stored
		hbErr, stErr error
		wg           sync.WaitGroup
	)
	wg.Go(func() { hb, hbErr = c.lastOf(ctx, access.StreamHeartbeat, beats) })
	st, stErr = c.lastOf(ctx, access.StreamStatus, statuses)
	wg.Wait()
	found := make(map[string]lastSeen, len(devices))
	for i, d := range devices {
		_, known := st[statuses[i]]
		seen := lastSeen{status: known, readable: hbErr == nil && stErr == nil}
		if m, ok := hb[beats[i]]; ok {
			if beat, err := command.DecodeDocument[command.Heartbeat](m.Data); err == nil {
				seen.heartbeat, seen.at = beat, m.Time
			}
		}
		found[d] = seen
	}
	return found
}

// age is how long ago the device was heard of, by the broker's clock.
func (c *Client) age(seen lastSeen) (time.Duration, bool) {
	now, ok := c.clock.Latest()
	if !ok || seen.at.IsZero() {
		return 0, false
	}
	return max(0, now.Sub(seen.at)), true
}

// justCameUp tells whether the device took up its commands less than freshFor
// ago, so that the broker's 503 may be premature.
func (c *Client) justCameUp(seen lastSeen) bool {
	age, ok := c.age(seen)
	return ok && age+time.Duration(seen.heartbeat.SubscribedForMS)*time.Millisecond < freshFor
}

func (c *Client) heard(seen lastSeen) string {
	age, ok := c.age(seen)
	switch {
	case ok:
		return "the last heartbeat was " + coarse(age) + " ago"
	case !seen.readable:
		return "when it was last heard of cannot be read with this role"
	}
	return "no heartbeat was ever stored"
}

// coarse prints a duration as people say it.
func coarse(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func (c *Client) offline(out outgoing, seen lastSeen) *command.Error {
	e := &command.Error{Outcome: command.OutcomeOffline, Verb: out.verb, DeviceID: out.device, RequestID: out.header.RequestID}
	if seen.readable && !seen.status && seen.at.IsZero() {
		e.Outcome = command.OutcomeUnknownDevice
		e.Message = "no agent listens under this id and none ever reported; check the spelling"
		return e
	}
	e.Message = "no agent listens for this device; " + c.heard(seen)
	return e
}

func (c *Client) timedOut(out outgoing, seen lastSeen) *command.Error {
	return &command.Error{
		Outcome: command.OutcomeTimeout, Verb: out.verb, DeviceID: out.device, RequestID: out.header.RequestID,
		Message: "no reply in time; " + c.heard(seen), Err: context.DeadlineExceeded,
	}
}

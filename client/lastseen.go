package client

import (
	"context"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// How long the look at what devices last reported may take: it makes an outcome
// more helpful and must not make it late. Variables, because tests run on
// machines that are busy with other things.
var (
	lookupTimeout    = 500 * time.Millisecond // with the pauses of retryDelays still less than a second
	lookupAllTimeout = 2 * time.Second        // for many devices at once
)

// justUp is how long after a device subscribed the broker may still say that
// nobody listens: interest takes some milliseconds across routes.
const justUp = 5 * time.Second

// retryDelays are the pauses before a device that came up just now is asked
// again.
var retryDelays = [...]time.Duration{50 * time.Millisecond, 250 * time.Millisecond}

// lastSeen is what the broker keeps of a device.
type lastSeen struct {
	read          bool          // it could be read
	status        bool          // a status is stored
	heartbeatAt   time.Time     // when the last heartbeat was stored, broker time; zero: none is
	subscribedFor time.Duration // what the heartbeat says; negative: not known
	now           time.Time     // broker time of the look; zero: not known
}

// known tells whether the device has ever reported.
func (s lastSeen) known() bool { return !s.read || s.status || !s.heartbeatAt.IsZero() }

// age is how old the last heartbeat is.
func (s lastSeen) age() (age time.Duration, ok bool) {
	if s.now.IsZero() || s.heartbeatAt.IsZero() {
		return 0, false
	}
	return max(0, s.now.Sub(s.heartbeatAt)), true
}

// justUp tells whether the device took up commands so lately that a 503 may be
// of before.
func (s lastSeen) justUp() bool {
	age, ok := s.age()
	return ok && s.subscribedFor >= 0 && s.subscribedFor < justUp && age+s.subscribedFor < justUp
}

// String is for messages: "last heartbeat 12s ago".
func (s lastSeen) String() string {
	switch age, ok := s.age(); {
	case ok:
		return "last heartbeat " + round(age).String() + " ago"
	case !s.read:
		return "its last heartbeat could not be read"
	case s.heartbeatAt.IsZero():
		return "it never sent a heartbeat"
	}
	return "last heartbeat at " + s.heartbeatAt.UTC().Format(time.RFC3339)
}

// heartbeat takes a stored heartbeat in.
func (s *lastSeen) heartbeat(m stored) {
	s.heartbeatAt, s.subscribedFor = m.At, -1
	if hb, err := command.DecodeDocument[command.Heartbeat](m.Data); err == nil && hb.SubscribedForMS >= 0 && hb.SubscribedForMS < int64(time.Hour/time.Millisecond) {
		s.subscribedFor = time.Duration(hb.SubscribedForMS) * time.Millisecond
	}
}

// detached is a context for a look after a command has ended: the caller's time
// may be up, but one who cancelled wants nothing more.
func detached(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	free, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		if ctx.Err() == context.Canceled {
			cancel()
		}
	})
	return free, func() { stop(); cancel() }
}

// lookUp reads what the broker keeps of one device: heartbeat and status at the
// same time. What cannot be read is told as such.
func (c *Client) lookUp(ctx context.Context, device string) lastSeen {
	ctx, cancel := detached(ctx, lookupTimeout)
	defer cancel()
	events := make(chan event, 2)
	beat, err := c.ask(access.StreamHeartbeat, getRequest{LastFor: command.HeartbeatSubject(device)}, events)
	if err != nil {
		return lastSeen{}
	}
	defer c.mux.drop(beat)
	status, err := c.ask(access.StreamStatus, getRequest{LastFor: command.StatusSubject(device)}, events)
	if err != nil {
		return lastSeen{}
	}
	defer c.mux.drop(status)
	seen := lastSeen{read: true}
	for range 2 {
		var p page
		select {
		case e := <-events:
			if _, err := p.add(e, false); err != nil {
				seen.read = false
				continue
			}
			for _, m := range p.messages {
				if e.call == beat {
					seen.heartbeat(m)
				} else {
					seen.status = true
				}
			}
		case <-ctx.Done():
			seen.read = false
			return seen
		}
	}
	seen.now, _ = c.now(ctx)
	return seen
}

// lookUpAll is lookUp for many devices with few reads. Where it fails, the map
// is nil.
func (c *Client) lookUpAll(ctx context.Context, devices []string) map[string]lastSeen {
	all := make(map[string]lastSeen, len(devices))
	subjects := make([]string, len(devices))
	for i, d := range devices {
		all[d] = lastSeen{read: true}
		subjects[i] = command.HeartbeatSubject(d)
	}
	note := func(m stored, set func(*lastSeen)) {
		device := lastToken(m.Subject)
		if seen, ok := all[device]; ok {
			set(&seen)
			all[device] = seen
		}
	}
	err := c.lastOf(ctx, access.StreamHeartbeat, subjects, func(m stored) { note(m, func(s *lastSeen) { s.heartbeat(m) }) })
	if err != nil {
		return nil
	}
	// A device that sends heartbeats is known; only of the others a status matters.
	subjects = subjects[:0]
	for _, d := range devices {
		if all[d].heartbeatAt.IsZero() {
			subjects = append(subjects, command.StatusSubject(d))
		}
	}
	err = c.lastOf(ctx, access.StreamStatus, subjects, func(m stored) { note(m, func(s *lastSeen) { s.status = true }) })
	if err != nil {
		return nil
	}
	now, _ := c.now(ctx)
	for _, d := range devices {
		seen := all[d]
		seen.now = now
		all[d] = seen
	}
	return all
}

func lastToken(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

// offlineFault is the outcome of a command that nobody took.
func offlineFault(seen lastSeen) *command.Error {
	if !seen.known() {
		return fault(command.OutcomeUnknownDevice, nil, "nobody listens there, and no device of that id has ever reported; check the id")
	}
	return fault(command.OutcomeOffline, nil, "the device is not connected; %v", seen)
}

// timeoutFault is the outcome of a command without a reply.
func timeoutFault(after time.Duration, seen lastSeen) *command.Error {
	return fault(command.OutcomeTimeout, nil, "no reply within %v; %v", round(after), seen)
}

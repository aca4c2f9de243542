package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// PingResult is how a ping ended.
type PingResult struct {
	Device    string
	RequestID string // empty where the device was not asked
	// Reply is what the device answered; the zero value unless Err is nil.
	Reply command.PingReply
	// RTT is the time from sending to the reply; 0 where no reply came.
	RTT time.Duration
	// Err is why there is no reply, or that it is an error; nil: all is well.
	Err *command.Error
}

// Outcome is how the ping ended, as one word.
func (r PingResult) Outcome() command.Outcome {
	if r.Err == nil {
		return command.OutcomeOK
	}
	return r.Err.Outcome
}

// NotStarted tells whether the device was not asked, because the fan-out was
// stopped or aborted before its turn: Err matches [ErrNotStarted].
func (r PingResult) NotStarted() bool { return r.Err != nil && errors.Is(r.Err, ErrNotStarted) }

// Ping asks a device whether it is there. The error, if any, is a
// [*command.Error].
//
// Where broker time cannot be had, the ping goes without a deadline. A device
// that nobody hears for is [ErrDeviceOffline] at once, unless its last heartbeat
// says that it came up less than 5 s ago: then it is asked again after 50 and
// 250 ms.
func (c *Client) Ping(ctx context.Context, device string) (command.PingReply, error) {
	r := c.PingOne(ctx, device)
	if r.Err != nil {
		return r.Reply, r.Err
	}
	return r.Reply, nil
}

// PingOne is [Client.Ping] with all that is known of the ping.
func (c *Client) PingOne(ctx context.Context, device string) PingResult {
	a, failed := c.do(ctx, command.VerbPing, device, nil, command.RequestHeader{}, c.opts.Timeout)
	return c.pong(ctx, device, a, failed)
}

// PingAll pings devices, with at most [FanOut.Window] in flight, and yields
// exactly one result for each, as they come. A device that is named twice is
// asked once and yields once. An id outside the syntax yields a result too.
//
// No device is left out when ctx ends or the connection is lost: each of the
// rest yields what is known of it, and so does each that was not asked because of
// [FanOut.Stop] or [FanOut.Abort] ([ErrNotStarted]). ctx bounds the whole, [FanOut.Timeout] each
// device. The pings are sent by ranging over the sequence, and each time it is
// ranged over; a loop that is left early gives up the rest.
func (c *Client) PingAll(ctx context.Context, devices []string, f FanOut) iter.Seq[PingResult] {
	return func(yield func(PingResult) bool) {
		bad := f.setDefaults(DefaultWindow, c.opts.Timeout)
		s := newScatter(ctx, c, command.VerbPing, nil, unique(devices), f)
		defer s.close()
		if bad != nil {
			s.stopped = bad
		}
		s.run(func(device string, a answer, failed *command.Error) (good, more bool) {
			r := c.pong(ctx, device, a, failed)
			return r.Err == nil, yield(r)
		})
	}
}

// unique is list without repetitions, in the same order.
func unique(list []string) []string {
	seen := make(map[string]struct{}, len(list))
	for i, s := range list {
		if _, again := seen[s]; again {
			rest := slices.Clone(list[:i])
			for _, s := range list[i:] {
				if _, again := seen[s]; !again {
					seen[s] = struct{}{}
					rest = append(rest, s)
				}
			}
			return rest
		}
		seen[s] = struct{}{}
	}
	return list
}

// pong makes the result of an answer, or of its absence.
func (c *Client) pong(ctx context.Context, device string, a answer, failed *command.Error) PingResult {
	r := PingResult{Device: device, RequestID: a.requestID, RTT: a.rtt}
	if failed != nil {
		r.Err = failed
		return r
	}
	reply, err := decode[command.PingReply](a, command.VerbPing, device)
	if err == nil && reply.DeviceID != device {
		err = of(fault(command.OutcomeFailed, fmt.Errorf("%w: it is of the device %.80q", ErrBadReply, reply.DeviceID), ""), command.VerbPing, device, a.requestID)
	}
	if err != nil {
		r.Err = err
		c.note(ctx, err)
		return r
	}
	r.Reply = reply
	return r
}

package client

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// retryAfter are the pauses before a command is sent again to a device that has
// only just come up: interest can lag a few milliseconds across the routes of a
// cluster.
var retryAfter = []time.Duration{50 * time.Millisecond, 250 * time.Millisecond}

// outgoing is a command before it is sent.
type outgoing struct {
	verb    command.Verb
	device  string
	payload []byte
	header  command.RequestHeader // RequestID set; Deadline set where known
}

// prepare gives a command its request id and deadline.
func (c *Client) prepare(ctx context.Context, verb command.Verb, device string, payload []byte, timeout time.Duration) outgoing {
	return outgoing{verb: verb, device: device, payload: payload, header: command.RequestHeader{
		RequestID:   command.NewRequestID(),
		Deadline:    c.deadline(ctx, timeout),
		OperatorSub: c.opts.OperatorSub,
	}}
}

func (o outgoing) message() *nats.Msg {
	msg := &nats.Msg{Subject: command.Subject(o.device, o.verb), Data: o.payload, Header: make(nats.Header, 4)}
	o.header.Write(msg.Header)
	return msg
}

// reply is what a device answered, an error reply included.
type reply struct {
	msg *nats.Msg
	rtt time.Duration // of the attempt that was answered
}

// do sends one command and returns the device's reply, or an [*command.Error]
// that says why there is none. Every error carries verb, device and request id.
func (c *Client) do(ctx context.Context, verb command.Verb, device string, payload []byte) (reply, string, *command.Error) {
	if err := command.CheckDeviceID(device); err != nil {
		return reply{}, "", about(err, verb, device, "")
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	timeout := c.opts.Timeout
	if at, ok := ctx.Deadline(); ok {
		timeout = time.Until(at)
	}
	out := c.prepare(ctx, verb, device, payload, timeout)
	for attempt := 0; ; attempt++ {
		r, err := c.roundTrip(ctx, out)
		if err != nil {
			if e := about(err, verb, device, out.header.RequestID); e.Outcome != command.OutcomeTimeout {
				return reply{}, out.header.RequestID, c.record(e)
			}
			seen := c.lookup(ctx, []string{device})[device]
			return reply{}, out.header.RequestID, c.record(c.timedOut(out, seen))
		}
		if !isNoResponders(r.msg) {
			return r, out.header.RequestID, nil
		}
		seen := c.lookup(ctx, []string{device})[device]
		if attempt >= len(retryAfter) || !c.justCameUp(seen) || !pause(ctx, retryAfter[attempt]) {
			return reply{}, out.header.RequestID, c.record(c.offline(out, seen))
		}
	}
}

// roundTrip sends out once and waits for the answer, the broker's 503 included.
func (c *Client) roundTrip(ctx context.Context, out outgoing) (reply, error) {
	type answer struct {
		msg *nats.Msg
		err error
	}
	answered := make(chan answer, 1)
	start := time.Now()
	req, err := c.mux.send(out.message(), func(msg *nats.Msg, err error) { answered <- answer{msg, err} })
	if err != nil {
		return reply{}, err
	}
	select {
	case a := <-answered:
		return reply{a.msg, time.Since(start)}, a.err
	case <-ctx.Done():
		if c.mux.giveUp(req) {
			return reply{}, ended(ctx.Err())
		}
		a := <-answered // it ended in the same moment
		return reply{a.msg, time.Since(start)}, a.err
	}
}

// pause waits, and tells whether ctx lived that long.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// record logs what no device can have recorded, and returns e.
func (c *Client) record(e *command.Error) *command.Error {
	switch e.Outcome {
	case command.OutcomeOffline, command.OutcomeUnknownDevice, command.OutcomeTimeout, command.OutcomeFailed:
	case command.OutcomeDenied:
		if e.Kind != "" {
			return e // the device refused, and has recorded it
		}
	default:
		return e
	}
	c.log.Info("command not carried out", "verb", e.Verb, "device", e.DeviceID, "request_id", e.RequestID,
		"outcome", e.Outcome, "reason", e.Message)
	return e
}

package client

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/directget"
)

// answer is a reply as it came.
type answer struct {
	header    map[string][]string
	data      []byte
	requestID string
	rtt       time.Duration // from when the request was handed to the connection
}

// do sends one command and waits for its reply: the path that every verb takes.
// It fills the request id and the deadline of header where they are empty; what
// comes back may be an error reply, which decode tells. The error, if there is
// one, has been logged.
func (c *Client) do(ctx context.Context, verb command.Verb, device string, payload []byte, header command.RequestHeader, timeout time.Duration) (answer, *command.Error) {
	if header.RequestID == "" {
		header.RequestID = command.NewRequestID()
	}
	header.OperatorSub = c.opts.OperatorSub
	a, err := c.exchange(ctx, verb, device, payload, header, timeout)
	a.requestID = header.RequestID
	if err != nil {
		err = of(err, verb, device, header.RequestID)
		c.note(ctx, err)
	}
	return a, err
}

var timers = sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}

func (c *Client) exchange(ctx context.Context, verb command.Verb, device string, payload []byte, header command.RequestHeader, timeout time.Duration) (answer, *command.Error) {
	if err := checkDevice(device); err != nil {
		return answer{}, err
	}
	if ctx.Err() != nil {
		return answer{}, contextFault(ctx, false)
	}
	if err := c.ready(); err != nil {
		return answer{}, err
	}
	limit := time.Now().Add(timeout)
	if err := c.setDeadline(ctx, verb, &header, timeout); err != nil {
		return answer{}, err
	}
	timer := timers.Get().(*time.Timer)
	timer.Reset(time.Until(limit))
	defer timers.Put(timer)
	defer timer.Stop()

	var seen lastSeen
	events := make(chan event, 1)
	for attempt := 0; ; attempt++ {
		call := &call{subject: command.Subject(device, verb), to: events}
		if err := c.send(call, payload, header); err != nil {
			return answer{}, err
		}
		e, err := c.await(ctx, call, events, timer)
		if err != nil {
			if err.Outcome == command.OutcomeTimeout {
				err.Message += "; " + c.lookUp(ctx, device).String()
			}
			return answer{}, err
		}
		if e.err != nil {
			return answer{}, e.err
		}
		if !directget.NoResponders(e.msg.Header, e.msg.Data) {
			return answer{header: e.msg.Header, data: e.msg.Data, rtt: e.at.Sub(call.sent)}, nil
		}
		if attempt == 0 {
			seen = c.lookUp(ctx, device)
		}
		if attempt == len(retryDelays) || !seen.justUp() || !pause(ctx, retryDelays[attempt], limit) {
			return answer{}, offlineFault(seen)
		}
	}
}

// checkDevice is [command.CheckDeviceID] as a fault.
func checkDevice(device string) *command.Error {
	if err := command.CheckDeviceID(device); err != nil {
		return asFault(err)
	}
	return nil
}

// setDeadline sets when the command expires, by broker time. Without broker time
// a command that only reads goes without; one that changes something does not
// go.
func (c *Client) setDeadline(ctx context.Context, verb command.Verb, header *command.RequestHeader, timeout time.Duration) *command.Error {
	if !header.Deadline.IsZero() {
		return nil
	}
	now, ok := c.now(ctx)
	if !ok {
		if verb.Changes() {
			return natsFault(c.clockError(), "the broker's time is not known, and a command that changes something needs a deadline")
		}
		return nil
	}
	if at, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(at))
	}
	header.Deadline = now.Add(timeout)
	return nil
}

// send opens the call and publishes the command. Without an error, the call ends
// with an event.
func (c *Client) send(call *call, payload []byte, header command.RequestHeader) *command.Error {
	msg := &nats.Msg{Subject: call.subject, Header: make(nats.Header, 4), Data: payload}
	header.Write(msg.Header)
	return c.publish(call, msg)
}

func (c *Client) publish(call *call, msg *nats.Msg) *command.Error {
	reply, err := c.mux.open(call)
	if err != nil {
		return err
	}
	msg.Reply = reply
	// Looked at after the call is open: whatever happens to the connection from here
	// on ends the call.
	err = c.ready()
	if err == nil {
		call.sent = time.Now()
		if failed := c.nc.PublishMsg(msg); failed != nil {
			err = publishFault(failed)
		}
	}
	if err != nil && c.mux.drop(call) {
		return err
	}
	return nil // also where the connection was lost meanwhile: the event says so
}

// await waits for the event of a call. The error is of the caller's side: the
// timeout, or the context.
func (c *Client) await(ctx context.Context, call *call, events <-chan event, timer *time.Timer) (event, *command.Error) {
	var err *command.Error
	select {
	case e := <-events:
		return e, nil
	case <-ctx.Done():
		err = contextFault(ctx, true)
	case <-timer.C:
		if ctx.Err() != nil {
			err = contextFault(ctx, true)
			break
		}
		err = fault(command.OutcomeTimeout, nil, "no reply within %v", round(time.Since(call.sent)))
	}
	if !c.mux.drop(call) {
		return <-events, nil // it came at the same moment
	}
	return event{}, err
}

// pause waits for d; false where that would go beyond limit, or ctx ended.
func pause(ctx context.Context, d time.Duration, limit time.Time) bool {
	if time.Until(limit) <= d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// decode reads the reply to a command. Where it is an error, it says of which
// command.
func decode[T any](a answer, verb command.Verb, device string) (T, *command.Error) {
	reply, err := command.DecodeReply[T](a.header, a.data)
	if err == nil {
		return reply, nil
	}
	return reply, of(asFault(err), verb, device, a.requestID)
}

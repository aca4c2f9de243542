package client

import (
	"context"
	"iter"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Result is what became of one command on one device.
type Result[T any] struct {
	Device    string
	RequestID string         // empty where nothing was sent
	Reply     T              // the zero value unless Err is nil
	RTT       time.Duration  // from sending to the reply; 0 where there was none
	Err       *command.Error // nil: the outcome is ok
}

// Outcome is the outcome of the command.
func (r Result[T]) Outcome() command.Outcome {
	if r.Err == nil {
		return command.OutcomeOK
	}
	return r.Err.Outcome
}

// PingResult is what became of one ping.
type PingResult = Result[command.PingReply]

// Ping asks the device whether it is there. The error is an [*command.Error].
func (c *Client) Ping(ctx context.Context, device string) (command.PingReply, error) {
	r := c.PingOne(ctx, device)
	if r.Err != nil {
		return command.PingReply{}, r.Err
	}
	return r.Reply, nil
}

// PingOne is Ping with the round-trip time and request id.
func (c *Client) PingOne(ctx context.Context, device string) PingResult {
	r, id, err := c.do(ctx, command.VerbPing, device, nil)
	if err != nil {
		return PingResult{Device: device, RequestID: id, Err: err}
	}
	return decodePing(device, id, r)
}

// PingAll asks many devices at once and yields one result for each as it comes,
// in no order; a device that is named twice is asked once. When ctx ends, what
// is not answered yet ends with it and is still yielded. Breaking off the loop
// gives up the rest.
func (c *Client) PingAll(ctx context.Context, devices []string, o FanOut) iter.Seq[PingResult] {
	return fanOut(ctx, c, command.VerbPing, devices, nil, o, decodePing)
}

func decodePing(device, requestID string, r reply) PingResult {
	result := PingResult{Device: device, RequestID: requestID, RTT: r.rtt}
	pong, err := command.DecodeReply[command.PingReply](r.msg.Header, r.msg.Data)
	if err == nil && pong.DeviceID != device {
		err = &command.Error{Outcome: command.OutcomeFailed, Message: "another device answered: " + pong.DeviceID, Err: ErrBadReply}
	}
	if err != nil {
		result.Err = about(err, command.VerbPing, device, requestID)
		return result
	}
	result.Reply = pong
	return result
}

package agent

import (
	"context"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Handler serves one verb. Handle runs in a goroutine of its own, within the
// limit of MaxConcurrent, and returns the reply object, or an error: an
// [*command.Error] is answered as it is, any other as internal, with its text in
// the log only. ctx ends when the agent has waited long enough for it to stop;
// it does not end at the deadline, which bounds the start of a command and not
// its duration.
type Handler interface {
	Handle(ctx context.Context, req *Request) (reply any, err error)
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, req *Request) (any, error)

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, req *Request) (any, error) { return f(ctx, req) }

// Request is a command that was accepted.
type Request struct {
	Verb    command.Verb
	Caller  command.AuditCaller // as the broker verified it
	Header  command.RequestHeader
	Payload []byte
	Arrived time.Time // broker time, or the device's where that is not known yet
	Timed   bool      // Arrived is broker time

	stillValid func() error
	ended      func(exitCode *int, failure *command.Error)
}

// Ended tells how the process of a session ended, after the handler has answered
// with a [command.SessionReply]: with an exit code, if it is known, and a failure,
// if it did not end by itself. The verb result gives it to the caller, also after
// a restart of the agent. Only the first call counts.
func (r *Request) Ended(exitCode *int, failure *command.Error) {
	if r.ended != nil {
		r.ended(exitCode, failure)
	}
}

// StillValid fails, with an error of kind expired, where the deadline has passed
// meanwhile. The agent calls it right before a handler whose verb changes
// something; a handler that waits for anything calls it again right before the
// change.
func (r *Request) StillValid() error {
	if r.stillValid == nil {
		return nil
	}
	return r.stillValid()
}

// inline marks handlers that never wait: they run on the connection's callback,
// need no slot, and so answer on a device whose slots are all taken.
type inline interface{ inline() }

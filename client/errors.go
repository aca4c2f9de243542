package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// What to match errors of this package against, with errors.Is. Each stands for
// one outcome of package command; ErrBadReply, ErrNATS, ErrNotStarted and ErrClosed tell causes
// of [command.OutcomeFailed] apart.
var (
	ErrDeviceOffline   error = &command.Error{Outcome: command.OutcomeOffline}         // also matches an unknown device
	ErrUnknownDevice   error = &command.Error{Outcome: command.OutcomeUnknownDevice}   // offline, and it never reported a status
	ErrTimeout         error = &command.Error{Outcome: command.OutcomeTimeout}         // no reply in time
	ErrExpired         error = &command.Error{Outcome: command.OutcomeExpired}         // the deadline had passed; nothing ran
	ErrDenied          error = &command.Error{Outcome: command.OutcomeDenied}          // by the broker (Kind is empty) or by the device
	ErrBusy            error = &command.Error{Outcome: command.OutcomeBusy}            // try again later
	ErrRejected        error = &command.Error{Outcome: command.OutcomeRejected}        // the request is malformed
	ErrDuplicate       error = &command.Error{Outcome: command.OutcomeDuplicate}       // the same request is running
	ErrUnsupportedVerb error = &command.Error{Outcome: command.OutcomeUnsupportedVerb} // the agent is older than the verb
	ErrStartedNoResult error = &command.Error{Outcome: command.OutcomeStartedNoResult} // it started, its end is not known

	ErrFailed error = &command.Error{Outcome: command.OutcomeFailed} // everything else

	ErrBadReply   = command.ErrBadReply                    // failed: the reply could not be read
	ErrNATS       = errors.New("NATS fault")               // failed: the connection was lost, drained or closed, or the broker misbehaves
	ErrNotStarted = errors.New("the device was not asked") // failed: the fan-out was stopped or aborted before
	ErrClosed     = errors.New("the client was closed")    // failed
)

// fault is an error before it is known of which command.
func fault(outcome command.Outcome, err error, format string, args ...any) *command.Error {
	return &command.Error{Outcome: outcome, Message: fmt.Sprintf(format, args...), Err: err}
}

// natsFault is a fault of the connection or the broker. A nil cause is allowed.
func natsFault(cause error, format string, args ...any) *command.Error {
	err := ErrNATS
	if cause != nil {
		err = fmt.Errorf("%w: %w", ErrNATS, cause)
	}
	return fault(command.OutcomeFailed, err, format, args...)
}

// refused tells whether err is the broker's refusal of a credential.
func refused(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked)
}

// of says of which command e is. e itself may be shared by many commands.
func of(e *command.Error, verb command.Verb, device, requestID string) *command.Error {
	c := *e
	c.Verb, c.DeviceID, c.RequestID = verb, device, requestID
	return &c
}

// publishFault tells why a message could not be sent.
func publishFault(err error) *command.Error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return fault(command.OutcomeRejected, err, "the request is larger than the broker takes")
	}
	return natsFault(err, "the request could not be sent")
}

// contextFault is the outcome of a command whose context ended. asked tells
// whether the device had been asked by then.
func contextFault(ctx context.Context, asked bool) *command.Error {
	err := ctx.Err()
	what := "gave up waiting for the reply"
	if !asked {
		what = "not asked"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault(command.OutcomeTimeout, err, "%s: the caller's time was up", what)
	}
	if cause := context.Cause(ctx); cause != err {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return fault(command.OutcomeFailed, err, "%s", what)
}

// asFault is err, which is of this package or of package command, as a fault.
func asFault(err error) *command.Error {
	var e *command.Error
	if errors.As(err, &e) {
		return e
	}
	return fault(command.OutcomeFailed, err, "")
}

// round makes a duration that people read.
func round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

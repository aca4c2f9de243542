package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// Sentinels for errors.Is, one per outcome. ErrDeviceOffline also matches a
// device that was never heard of; ErrUnknownDevice only that.
var (
	ErrFailed          error = &command.Error{Outcome: command.OutcomeFailed}
	ErrUnsupportedVerb error = &command.Error{Outcome: command.OutcomeUnsupportedVerb}
	ErrDuplicate       error = &command.Error{Outcome: command.OutcomeDuplicate}
	ErrRejected        error = &command.Error{Outcome: command.OutcomeRejected}
	ErrDeviceOffline   error = &command.Error{Outcome: command.OutcomeOffline}
	ErrUnknownDevice   error = &command.Error{Outcome: command.OutcomeUnknownDevice}
	ErrTimeout         error = &command.Error{Outcome: command.OutcomeTimeout}
	ErrExpired         error = &command.Error{Outcome: command.OutcomeExpired}
	ErrStartedNoResult error = &command.Error{Outcome: command.OutcomeStartedNoResult}
	ErrDenied          error = &command.Error{Outcome: command.OutcomeDenied}
	ErrBusy            error = &command.Error{Outcome: command.OutcomeBusy}
)

// Causes that tell the faults behind [ErrFailed] apart.
var (
	// ErrBadReply: the device answered, and the answer could not be read.
	ErrBadReply = command.ErrBadReply
	// ErrNATS: the connection to the broker failed.
	ErrNATS = errors.New("NATS fault")
	// ErrClosed: the client was closed while the command was under way.
	ErrClosed = errors.New("client is closed")
)

// natsFault wraps an error of the NATS library.
func natsFault(err error) error {
	return &command.Error{Outcome: command.OutcomeFailed, Message: "the connection to the broker failed; try again when it is back", Err: fmt.Errorf("%w: %w", ErrNATS, err)}
}

// ended is the error of a command whose context ended before its reply came.
func ended(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &command.Error{Outcome: command.OutcomeTimeout, Message: "no reply in time", Err: err}
	}
	return &command.Error{Outcome: command.OutcomeFailed, Message: "given up by the caller before a reply came", Err: err}
}

// about fills in what command err speaks of, where it does not say so itself.
func about(err error, verb command.Verb, device, requestID string) *command.Error {
	e, ok := errors.AsType[*command.Error](err)
	if !ok {
		e = &command.Error{Outcome: command.OutcomeFailed, Err: err}
	}
	filled := *e
	if filled.Verb == "" {
		filled.Verb = verb
	}
	if filled.DeviceID == "" {
		filled.DeviceID = device
	}
	if filled.RequestID == "" {
		filled.RequestID = requestID
	}
	return &filled
}

// isNoResponders tells whether m is the broker's answer that nobody listens.
func isNoResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && m.Header.Get(headerStatus) == statusNoResponders
}

const (
	headerStatus       = "Status"
	statusNoResponders = "503"
)

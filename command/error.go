package command

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Kind is the machine-readable reason in an error reply.
type Kind string

// The error kinds of protocol 1.
const (
	KindBadRequest         Kind = "bad_request"         // the request is malformed; the same request will fail again
	KindUnsupportedVerb    Kind = "unsupported_verb"    // this agent does not know the verb
	KindDenied             Kind = "denied"              // the device's policy or identity guard refuses the caller
	KindBusy               Kind = "busy"                // a limit is reached, or broker time is not known yet; try again
	KindDuplicate          Kind = "duplicate"           // the same request is running
	KindExpired            Kind = "expired"             // the deadline had passed; nothing ran
	KindNotFound           Kind = "not_found"           // no such container, session or request id
	KindRuntimeUnavailable Kind = "runtime_unavailable" // no container engine
	KindStartedNoResult    Kind = "started_no_result"   // it started and its result is not known (yet)
	KindInternal           Kind = "internal"            // a fault of the agent
)

// Kinds lists every kind.
func Kinds() []Kind {
	return []Kind{
		KindBadRequest, KindUnsupportedVerb, KindDenied, KindBusy, KindDuplicate, KindExpired,
		KindNotFound, KindRuntimeUnavailable, KindStartedNoResult, KindInternal,
	}
}

// Outcome is what a caller learns of a command. The set is closed.
type Outcome string

// The outcomes of protocol 1.
const (
	OutcomeOK              Outcome = "ok"
	OutcomeFailed          Outcome = "failed"
	OutcomeUnsupportedVerb Outcome = "unsupported_verb"
	OutcomeDuplicate       Outcome = "duplicate"
	OutcomeRejected        Outcome = "rejected"
	OutcomeOffline         Outcome = "offline"
	OutcomeUnknownDevice   Outcome = "unknown_device"
	OutcomeTimeout         Outcome = "timeout"
	OutcomeExpired         Outcome = "expired"
	OutcomeStartedNoResult Outcome = "started_no_result"
	OutcomeDenied          Outcome = "denied"
	OutcomeBusy            Outcome = "busy"
)

// Outcomes lists every outcome.
func Outcomes() []Outcome {
	return []Outcome{
		OutcomeOK, OutcomeFailed, OutcomeUnsupportedVerb, OutcomeDuplicate, OutcomeRejected, OutcomeOffline,
		OutcomeUnknownDevice, OutcomeTimeout, OutcomeExpired, OutcomeStartedNoResult, OutcomeDenied, OutcomeBusy,
	}
}

// Known tells whether o is an outcome of this protocol.
func (o Outcome) Known() bool { return slices.Contains(Outcomes(), o) }

// ExitCode is the exit code that the command line gives for the outcome.
func (o Outcome) ExitCode() int {
	switch o {
	case OutcomeOK:
		return 0
	case OutcomeRejected:
		return 2
	case OutcomeOffline, OutcomeUnknownDevice:
		return 3
	case OutcomeTimeout, OutcomeExpired, OutcomeStartedNoResult:
		return 4
	case OutcomeDenied:
		return 5
	case OutcomeBusy:
		return 6
	}
	return 1
}

// Outcome is what an error reply of this kind means to the caller. A kind that
// this package does not know is [OutcomeFailed].
func (k Kind) Outcome() Outcome {
	switch k {
	case KindBadRequest:
		return OutcomeRejected
	case KindUnsupportedVerb:
		return OutcomeUnsupportedVerb
	case KindDenied:
		return OutcomeDenied
	case KindBusy:
		return OutcomeBusy
	case KindDuplicate:
		return OutcomeDuplicate
	case KindExpired:
		return OutcomeExpired
	case KindStartedNoResult:
		return OutcomeStartedNoResult
	}
	return OutcomeFailed
}

// Error is a command that did not end with [OutcomeOK]. Match it by outcome
// with errors.Is against a bare &Error{Outcome: …}; package client has such
// sentinels.
type Error struct {
	Outcome   Outcome
	Kind      Kind   // what the device answered; empty where it did not
	Verb      Verb   // empty where no verb was involved
	DeviceID  string // empty where none was involved
	RequestID string // empty where none was sent
	Message   string // for people: what failed and what to do next
	Err       error  // cause, if any
}

// Error reads "ping vm-device-00: offline: <message>".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Verb != "" {
		b.WriteString(string(e.Verb))
		if e.DeviceID != "" {
			b.WriteString(" " + e.DeviceID)
		}
		b.WriteString(": ")
	}
	b.WriteString(string(e.Outcome))
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is matches an *Error that has the same outcome, and the same kind where the
// target names one. An unknown device also matches [OutcomeOffline].
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	if !ok || (t.Kind != "" && t.Kind != e.Kind) {
		return false
	}
	return t.Outcome == e.Outcome || (t.Outcome == OutcomeOffline && e.Outcome == OutcomeUnknownDevice)
}

// NewError is an error that a device answers with.
func NewError(kind Kind, format string, args ...any) *Error {
	return &Error{Outcome: kind.Outcome(), Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *Error { return NewError(KindBadRequest, format, args...) }

// ErrorReply is the payload of an error reply.
type ErrorReply struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail says what went wrong, in a reply or in a stored document.
type ErrorDetail struct {
	Kind      Kind   `json:"kind"`
	Message   string `json:"message"`
	RequestID string `json:"request_id,omitempty"`
}

// MaxMessage is the longest message of an error reply, in bytes; see
// [EncodeError].
const MaxMessage = 4 << 10

// maxKind is the longest kind that a reader takes, in bytes.
const maxKind = 64

// EncodeError makes the payload of an error reply and sets [HeaderError] in h,
// which must not be nil. An error without a kind is [KindInternal]; a longer
// message than [MaxMessage] is cut.
func EncodeError(h map[string][]string, e *Error) []byte {
	kind := e.Kind
	if kind == "" {
		kind = KindInternal
	}
	h[HeaderError] = []string{string(kind)}
	data, err := json.Marshal(ErrorReply{Error: ErrorDetail{Kind: kind, Message: cut(e.Message), RequestID: e.RequestID}})
	if err != nil {
		panic(fmt.Sprintf("encode error reply: %v", err)) // three strings always marshal
	}
	return data
}

// cut shortens a message to [MaxMessage] bytes, ellipsis included.
func cut(message string) string {
	const ellipsis = "…"
	if len(message) <= MaxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:MaxMessage-len(ellipsis)], "") + ellipsis
}

// DecodeError reads an error reply. ok is false where h says that the reply is
// not one. A payload that does not parse still gives the header's kind. The
// reply comes from a device and may end on a terminal: control characters in it
// are replaced, a long message is cut, and a kind that is not one word is
// [KindInternal].
func DecodeError(h map[string][]string, data []byte) (e *Error, ok bool) {
	values := h[HeaderError]
	if len(values) == 0 {
		return nil, false
	}
	kind := Kind(values[0])
	if !kind.wellFormed() {
		kind = KindInternal
	}
	var reply ErrorReply
	if len(data) > MaxDocument || json.Unmarshal(data, &reply) != nil {
		reply = ErrorReply{Error: ErrorDetail{Message: "the error reply carried no readable message"}}
	}
	requestID := reply.Error.RequestID
	if CheckRequestID(requestID) != nil {
		requestID = ""
	}
	return &Error{Outcome: kind.Outcome(), Kind: kind, Message: cut(Printable(reply.Error.Message)), RequestID: requestID}, true
}

// wellFormed tells whether k has the form of a kind: lower-case words and '_'.
func (k Kind) wellFormed() bool {
	if k == "" || len(k) > maxKind {
		return false
	}
	for i := 0; i < len(k); i++ {
		if c := k[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// Printable replaces the control and format characters of a string that came
// from elsewhere with U+FFFD: they could rewrite a terminal, or reverse the
// reading direction of a line. Newlines and tabs are among them.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

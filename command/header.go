package command

import (
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Headers of requests, replies and session output. NATS compares header names
// by case, so these spellings are exact.
const (
	HeaderProtocol    = "X-Harmony-Protocol"     // request: integer; absent means 1
	HeaderRequestID   = "X-Harmony-Request-Id"   // request: UUIDv7, made by the client
	HeaderDeadline    = "X-Harmony-Deadline"     // request: RFC 3339, UTC, nanoseconds, broker time
	HeaderInstance    = "X-Harmony-Instance"     // request: the instance the caller saw in the last status
	HeaderJob         = "X-Harmony-Job"          // exec request: UUIDv7 of the job that it is a part of
	HeaderOperatorSub = "X-Harmony-Operator-Sub" // request: informational, never trusted
	HeaderTraceparent = "traceparent"            // request: W3C Trace Context, reserved, passed on

	HeaderError    = "X-Harmony-Error"    // reply: the error kind
	HeaderReplayed = "X-Harmony-Replayed" // reply: "true" where the first reply is given again

	HeaderSeq    = "X-Harmony-Seq"    // session: number of a message, from 1, in a row of its own for each of output, input, and resize with signal
	HeaderStream = "X-Harmony-Stream" // session output: stdout, stderr or pty
	HeaderEnd    = "X-Harmony-End"    // session output: why it ended; see EndReason
)

// MaxDeadline is how far ahead the deadline of a command may lie.
const MaxDeadline = 24 * time.Hour

// deadlineLayout keeps all nine digits: a shorter fraction would compare
// differently as text and hides the precision that the contract promises.
const deadlineLayout = "2006-01-02T15:04:05.000000000Z"

// deadlineForm is what RFC 3339 allows in UTC; time.Parse also takes "T5:04:05Z"
// and a comma before the fraction.
var deadlineForm = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$`)

// RequestHeader is what travels with a command beside its payload. The zero
// value is a valid header for ping.
type RequestHeader struct {
	Protocol    int       // 0 is written as [Protocol] and read back as 1 when absent
	RequestID   string    // UUID; empty: none
	Deadline    time.Time // absolute, by broker time; zero: none
	Instance    string    // empty: any instance
	Job         string    // UUIDv7; empty: the command is no part of a job
	OperatorSub string    // informational, never trusted
	Traceparent string    // passed on
}

// Write sets the header's fields in h, which may be a nats.Header.
func (r RequestHeader) Write(h map[string][]string) {
	protocol := r.Protocol
	if protocol == 0 {
		protocol = Protocol
	}
	h[HeaderProtocol] = []string{strconv.Itoa(protocol)}
	set := func(name, value string) {
		if value != "" {
			h[name] = []string{value}
		}
	}
	set(HeaderRequestID, r.RequestID)
	if !r.Deadline.IsZero() {
		set(HeaderDeadline, r.Deadline.UTC().Format(deadlineLayout))
	}
	set(HeaderInstance, r.Instance)
	set(HeaderJob, r.Job)
	set(HeaderOperatorSub, r.OperatorSub)
	set(HeaderTraceparent, r.Traceparent)
}

// ReadRequestHeader reads and checks the fields of h. A header given twice, or
// one that does not parse, is an [*Error] with [KindBadRequest] that names it;
// unknown headers are ignored.
func ReadRequestHeader(h map[string][]string) (RequestHeader, error) {
	r := RequestHeader{Protocol: 1}
	var err error
	get := func(name string, most int) string {
		values := h[name]
		switch {
		case err != nil || len(values) == 0:
			return ""
		case len(values) > 1:
			err = badRequest("header %s is given %d times", name, len(values))
			return ""
		case len(values[0]) > most:
			err = badRequest("header %s has %d bytes, more than %d", name, len(values[0]), most)
			return ""
		}
		return values[0]
	}
	protocol := get(HeaderProtocol, 10)
	r.RequestID = get(HeaderRequestID, 36)
	deadline := get(HeaderDeadline, 40)
	r.Instance = get(HeaderInstance, 64)
	r.Job = get(HeaderJob, 36)
	r.OperatorSub = get(HeaderOperatorSub, 512)
	r.Traceparent = get(HeaderTraceparent, 256)
	if err != nil {
		return RequestHeader{}, err
	}
	if protocol != "" {
		n, parseErr := strconv.Atoi(protocol)
		if parseErr != nil || n < 1 {
			return RequestHeader{}, badRequest("header %s is %s, want a positive integer", HeaderProtocol, quote(protocol))
		}
		r.Protocol = n
	}
	if r.RequestID != "" {
		if err := CheckRequestID(r.RequestID); err != nil {
			return RequestHeader{}, err
		}
	}
	if r.Job != "" {
		if err := CheckJobID(r.Job); err != nil {
			return RequestHeader{}, err
		}
	}
	if deadline != "" {
		t, parseErr := time.Parse(time.RFC3339Nano, deadline)
		if parseErr != nil || !deadlineForm.MatchString(deadline) {
			return RequestHeader{}, badRequest("header %s is %s, want RFC 3339 in UTC, such as 2026-01-02T15:04:05.000000000Z", HeaderDeadline, quote(deadline))
		}
		r.Deadline = t
	}
	return r, nil
}

// NewRequestID makes a request id: a UUIDv7 (RFC 9562), which sorts by time.
func NewRequestID() string {
	id, err := uuid.NewV7()
	if err != nil {
		// The random source of the operating system failed; no id made any other
		// way would be safe against replay.
		panic(fmt.Sprintf("request id: %v", err))
	}
	return id.String()
}

// CheckRequestID refuses what is not a UUID in its 36-character lower-case
// form, with an [*Error] of [KindBadRequest]. Other spellings of the same UUID
// are refused because they would be other keys of the at-most-once table.
func CheckRequestID(id string) error {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed.String() != id {
		return badRequest("request id %s: want a lower-case UUID such as 01890a5d-ac96-774b-bcce-b302099a8057", quote(id))
	}
	return nil
}

// CheckProtocol tells whether a part that speaks protocol mine serves one that
// speaks theirs: neighbours do, both ways. The error is an [*Error] with
// [KindBadRequest].
func CheckProtocol(mine, theirs int) error {
	if theirs < mine-1 || theirs > mine+1 {
		return badRequest("protocol %d is not served by protocol %d; update the older side", theirs, mine)
	}
	return nil
}

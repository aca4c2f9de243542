package command

import (
	"crypto/rand"
	"crypto/sha256"
)

// Session names a stream and the credit that it starts with.
type Session struct {
	ID     string `json:"id"`     // see NewSessionID
	Credit int64  `json:"credit"` // bytes that the device may send before the first grant
}

// NewSessionID makes a session id: 128 random bits in lower-case base32, 26
// characters. It is a secret between the caller and the device: NATS does not
// check reply subjects, so that whoever knew the id could have a foreign answer
// delivered into the session's output. Logs and audit carry [SessionDigest].
func NewSessionID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return lowerBase32.EncodeToString(b[:])
}

// CheckSessionID refuses what [NewSessionID] does not make, with an [*Error] of
// [KindBadRequest] that does not repeat the id.
func CheckSessionID(id string) error {
	if !isToken128(id) {
		return badRequest("session id: want 128 random bits in lower-case base32, 26 characters")
	}
	return nil
}

// SessionDigest names a session where its id must not be told: in audit records
// and logs. It is the first 128 bits of the id's SHA-256, in lower-case base32.
func SessionDigest(id string) string {
	sum := sha256.Sum256([]byte(id))
	return lowerBase32.EncodeToString(sum[:16])
}

// Sizes of session output, in bytes.
const (
	MaxChunk          = 32 << 10  // largest chunk
	DefaultLogsWindow = 1 << 20   // 10 MB/s at a round trip of 100 ms
	DefaultExecWindow = 256 << 10 // 2.6 MB/s at a round trip of 100 ms
)

// LogsRequest is the payload of logs.
type LogsRequest struct {
	Session    *Session `json:"session,omitempty"`
	Container  string   `json:"container"`       // service, or deployment/service
	Follow     bool     `json:"follow"`          //
	Tail       *int     `json:"tail,omitempty"`  // lines from the end; absent: all
	Since      string   `json:"since,omitempty"` // RFC 3339
	Until      string   `json:"until,omitempty"` // RFC 3339
	Timestamps bool     `json:"timestamps"`      //
	Stdout     bool     `json:"stdout"`          //
	Stderr     bool     `json:"stderr"`          //
	// Reopen goes on with the new container where the one that is followed is
	// replaced. Without it the session ends there.
	Reopen bool `json:"reopen,omitempty"`
}

// ExecRequest is the payload of exec. Without a session the reply carries the
// output; see [ExecReply].
type ExecRequest struct {
	Session   *Session          `json:"session,omitempty"`
	Container string            `json:"container,omitempty"` // service, or deployment/service
	Host      bool              `json:"host,omitempty"`      // on the host, where the agent's policy allows
	Argv      []string          `json:"argv"`                // never a shell string
	Env       map[string]string `json:"env,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	User      string            `json:"user,omitempty"`
	Stdin     bool              `json:"stdin,omitempty"`
	// TTY gives the program a pseudo-terminal of 24 rows and 80 columns until the
	// first resize. Only with a session.
	TTY bool `json:"tty,omitempty"`
	// TimeoutMS is how long the program may run, in milliseconds, before it is
	// killed; 0: as long as the agent's policy allows. Without a session it is
	// killed at the deadline of the request too.
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
}

// MaxExecOutput is how much output an exec without a session returns, in bytes,
// both streams together.
const MaxExecOutput = 256 << 10

// ExecReply answers an exec without a session.
type ExecReply struct {
	ExitCode  int    `json:"exit_code"`
	Stdout    []byte `json:"stdout"` // base64 in JSON
	Stderr    []byte `json:"stderr"` // base64 in JSON
	Truncated bool   `json:"truncated"`
}

// ShellRequest is the payload of shell.
type ShellRequest struct {
	Session   *Session          `json:"session"`
	Container string            `json:"container,omitempty"`
	Host      bool              `json:"host,omitempty"`
	Argv      []string          `json:"argv,omitempty"` // empty: the container's shell
	Env       map[string]string `json:"env,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	User      string            `json:"user,omitempty"`
	Rows      uint16            `json:"rows"`
	Cols      uint16            `json:"cols"`
	Term      string            `json:"term,omitempty"`
}

// SessionReply accepts a session.
type SessionReply struct {
	Session string `json:"session"`
}

// Credit is the payload of [OpCredit].
type Credit struct {
	Ack    uint64 `json:"ack"`              // last chunk number received without a gap
	Credit int64  `json:"credit"`           // bytes the device may have in flight beyond it
	Resend bool   `json:"resend,omitempty"` // what came after ack was lost: send it again
}

// Resize is the payload of [OpResize].
type Resize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Signal is the payload of [OpSignal].
type Signal struct {
	Name string `json:"name"` // without "SIG": TERM, INT, HUP, …
}

// Stream is which output a chunk belongs to; the value of [HeaderStream].
type Stream string

// The streams of a session.
const (
	StreamStdout Stream = "stdout"
	StreamStderr Stream = "stderr"
	StreamPTY    Stream = "pty"

	StreamProgress Stream = "progress" // no output: see Progress
)

// EndReason is why a session ended; the value of [HeaderEnd].
type EndReason string

// The reasons.
const (
	EndEOF          EndReason = "eof"
	EndCancelled    EndReason = "cancelled"
	EndLeaseExpired EndReason = "lease_expired"
	EndError        EndReason = "error"
)

// SessionEnd is the payload of the last message of a session.
type SessionEnd struct {
	ExitCode *int         `json:"exit_code"` // null where there is no process, or it is not known
	Bytes    SessionBytes `json:"bytes"`
	Error    *ErrorDetail `json:"error"`
}

// SessionBytes counts what the session sent, so that a short read shows.
type SessionBytes struct {
	Stdout int64 `json:"stdout"` // pty output counts here
	Stderr int64 `json:"stderr"`
}

// ResultRequest is the payload of result.
type ResultRequest struct {
	RequestID string `json:"request_id"`
}

// ResultReply answers result for a request that has ended. One that is not
// known is [KindNotFound]; one that started and has no result yet is
// [KindStartedNoResult].
type ResultReply struct {
	RequestID string  `json:"request_id"`
	Verb      Verb    `json:"verb"`
	Outcome   Outcome `json:"outcome"`
	ExitCode  *int    `json:"exit_code,omitempty"`
	Message   string  `json:"message,omitempty"`
}

package command

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// AuditRecord is what a device records of one command: who asked what of whom,
// and how it ended. Arguments, environment, input and output never enter it.
// Records of one instance are numbered and chained: Prev is the [AuditHash] of
// the record before, so that a gap or a change shows.
type AuditRecord struct {
	Schema   int       `json:"schema"`
	DeviceID string    `json:"device_id"`
	BootID   string    `json:"boot_id"`
	Instance string    `json:"instance"`
	Seq      uint64    `json:"seq"`  // from 1 in each instance
	Prev     string    `json:"prev"` // hash of the record before, across instances; empty for the first one ever
	Time     time.Time `json:"time"` // broker time at which the command arrived

	Verb          Verb        `json:"verb"` // as asked, cut to 64 bytes
	Event         AuditEvent  `json:"event"`
	Caller        AuditCaller `json:"caller"`
	RequestID     string      `json:"request_id,omitempty"`
	Session       string      `json:"session,omitempty"` // SessionDigest: the id itself is a secret
	PayloadSHA256 string      `json:"payload_sha256"`    // hex digest of the request's payload
	Outcome       Outcome     `json:"outcome,omitempty"`
	Kind          Kind        `json:"kind,omitempty"`
	Reason        string      `json:"reason,omitempty"`
	Replayed      bool        `json:"replayed,omitempty"`
	DurationUS    int64       `json:"duration_us"` // microseconds from arrival to the reply
	ExitCode      *int        `json:"exit_code,omitempty"`
	Bytes         *AuditBytes `json:"bytes,omitempty"`
	Lost          uint64      `json:"lost,omitempty"` // records that could not be kept before this one
}

func (a AuditRecord) schema() int { return a.Schema }

// AuditEvent says which moment of a command a record speaks of.
type AuditEvent string

// The events.
const (
	AuditCommand AuditEvent = "command" // a command that was answered once and is over
	AuditStart   AuditEvent = "start"   // a session or process that starts
	AuditEnd     AuditEvent = "end"     // a session or process that ended
)

// AuditCaller is who asked, as the broker verified it.
type AuditCaller struct {
	User    string `json:"user"`    // NATS user name; see [UserName]
	UID     string `json:"uid"`     // see [UID]
	Account string `json:"account"` // NATS account
}

// AuditBytes counts what a session moved.
type AuditBytes struct {
	Stdin  int64 `json:"stdin"`
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// AuditHash is the hash of a record as it was published: the hex SHA-256 of its
// bytes.
func AuditHash(record []byte) string {
	sum := sha256.Sum256(record)
	return hex.EncodeToString(sum[:])
}

// PayloadDigest is the digest of a request's payload, in hex SHA-256.
func PayloadDigest(payload []byte) string { return AuditHash(payload) }

// Package directget reads the broker's answers to direct gets: how stored
// messages are read from any replica of a stream, without a consumer, which
// neither people nor devices may have (NATS ADR-31). The client, the agent and
// the command line all read streams this way and no other.
//
//	m, found, err := directget.Last(ctx, nc, stream, subject)
package directget

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/access"
)

// Message is a message of a stream.
type Message struct {
	Subject string
	Seq     uint64    // in the stream; never 0
	At      time.Time // when the broker stored it, by its clock
	Deleted bool      // a delete marker of a KV bucket
	Data    []byte
}

// Part is what one message of an answer says.
type Part struct {
	Message Message // Seq is 0 where there is none
	End     bool    // the answer ends here
	More    bool    // there is more in the stream than the answer holds
	UpTo    uint64  // for the next read of many subjects
}

// Headers of the server's answers.
const (
	HeaderStatus      = "Status"
	HeaderDescription = "Description"
	HeaderSubject     = "Nats-Subject"
	HeaderSequence    = "Nats-Sequence"
	HeaderTimeStamp   = "Nats-Time-Stamp"
	HeaderPending     = "Nats-Num-Pending"
	HeaderUpTo        = "Nats-UpTo-Sequence"
	HeaderKVOperation = "KV-Operation"
)

// ErrNoStream is the fault where nobody answers for the stream.
var ErrNoStream = errors.New("there is no such stream; fleet provision makes it")

// NoResponders tells whether a message is the server's word that nobody listens.
func NoResponders(h map[string][]string, data []byte) bool {
	return len(data) == 0 && first(h, HeaderStatus) == "503"
}

func first(h map[string][]string, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Last reads the last message on subject, which is taken as it stands, from
// stream. found is false where there is none. An error names stream and subject.
func Last(ctx context.Context, nc *nats.Conn, stream, subject string) (m Message, found bool, err error) {
	msg, err := nc.RequestWithContext(ctx, access.DirectGetLast(stream, subject), nil)
	if errors.Is(err, nats.ErrNoResponders) {
		err = ErrNoStream
	}
	var p Part
	if err == nil {
		p, err = Parse(msg.Header, msg.Data, false)
	}
	if m = p.Message; err == nil && m.Seq != 0 && m.Subject != subject {
		err = fmt.Errorf("the broker answers with a message on %.80q", m.Subject)
	}
	if err != nil {
		return Message{}, false, fmt.Errorf("read %s from stream %s: %w", subject, stream, err)
	}
	return m, m.Seq != 0, nil
}

// Parse reads one message of an answer. batch tells whether the request asked
// for many. An error quotes the answer in part only.
func Parse(h map[string][]string, data []byte, batch bool) (Part, error) {
	switch status := first(h, HeaderStatus); status {
	case "":
	case "204": // end of a batch
		pending, err := strconv.ParseUint(first(h, HeaderPending), 10, 64)
		if err != nil {
			return Part{}, fmt.Errorf("end of a read: header %s is %.40q", HeaderPending, first(h, HeaderPending))
		}
		upTo, _ := strconv.ParseUint(first(h, HeaderUpTo), 10, 64) // only where many subjects were asked for
		return Part{End: true, More: pending > 0, UpTo: upTo}, nil
	case "404":
		return Part{End: true}, nil
	case "503":
		return Part{}, ErrNoStream
	default:
		return Part{}, fmt.Errorf("the broker answers %.3s %.80q", status, first(h, HeaderDescription))
	}
	m := Message{Subject: first(h, HeaderSubject), Data: data}
	var err error
	if m.Seq, err = strconv.ParseUint(first(h, HeaderSequence), 10, 64); err != nil || m.Seq == 0 {
		return Part{}, fmt.Errorf("stored message: header %s is %.40q", HeaderSequence, first(h, HeaderSequence))
	}
	if m.At, err = time.Parse(time.RFC3339Nano, first(h, HeaderTimeStamp)); err != nil {
		return Part{}, fmt.Errorf("stored message: header %s is %.40q", HeaderTimeStamp, first(h, HeaderTimeStamp))
	}
	if m.Subject == "" {
		return Part{}, fmt.Errorf("stored message: header %s is missing", HeaderSubject)
	}
	m.Deleted = first(h, HeaderKVOperation) != ""
	return Part{Message: m, End: !batch}, nil
}

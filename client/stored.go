package client

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// Sizes of batched direct gets. nats-server refuses a multi_last of more than
// 1,024 subjects; its protocol is ADR-31 of the NATS architecture records.
const (
	maxMultiLast = 1000
	batchSize    = 500
	batchBytes   = 8 << 20
)

// stored is a message as the broker keeps it.
type stored struct {
	Subject string
	Seq     uint64
	Time    time.Time // by the broker's clock
	Data    []byte
	Deleted bool // a KV delete marker
}

// directGet is the payload of a batched direct get.
type directGet struct {
	Seq       uint64   `json:"seq,omitempty"`
	NextBy    string   `json:"next_by_subj,omitempty"`
	MultiLast []string `json:"multi_last,omitempty"`
	Batch     int      `json:"batch,omitempty"`
	MaxBytes  int      `json:"max_bytes,omitempty"`
}

// lastOf reads the last message on each subject; subjects that hold none are
// absent. A wildcard subject must not match more than 1,024.
func (c *Client) lastOf(ctx context.Context, stream string, subjects []string) (map[string]stored, error) {
	found := make(map[string]stored, len(subjects))
	for len(subjects) > 0 {
		n := min(len(subjects), maxMultiLast)
		batch, _, err := c.batch(ctx, stream, directGet{MultiLast: subjects[:n]})
		if err != nil {
			return nil, err
		}
		for _, m := range batch {
			found[m.Subject] = m
		}
		subjects = subjects[n:]
	}
	return found, nil
}

// scan calls each for every message that stream holds on subjects that match
// filter, from sequence from on, in order, until it returns false.
func (c *Client) scan(ctx context.Context, stream, filter string, from uint64, each func(stored) bool) error {
	for seq := max(from, 1); ; {
		batch, more, err := c.batch(ctx, stream, directGet{Seq: seq, NextBy: filter, Batch: batchSize, MaxBytes: batchBytes})
		if err != nil {
			return err
		}
		for _, m := range batch {
			if !each(m) {
				return nil
			}
			seq = m.Seq + 1
		}
		if !more || len(batch) == 0 {
			return nil
		}
	}
}

// batch is one direct get and all of its answers. more tells that the stream
// holds further messages of the kind.
func (c *Client) batch(ctx context.Context, stream string, get directGet) (found []stored, more bool, err error) {
	payload, err := json.Marshal(get)
	if err != nil {
		return nil, false, err
	}
	failed := func(err error) error { return fmt.Errorf("read %s: %w", stream, err) }
	ended := make(chan error, 1)
	// part runs on the subscription's goroutine alone; done after it.
	part := func(msg *nats.Msg) bool {
		if status := msg.Header.Get(headerStatus); status != "" {
			return true
		}
		m, err := parseStored(msg)
		if err != nil {
			return true
		}
		found = append(found, m)
		return false
	}
	done := func(msg *nats.Msg, err error) {
		if err == nil {
			more, err = endOfBatch(msg)
		}
		ended <- err
	}
	req, err := c.mux.sendParts(&nats.Msg{Subject: access.DirectGet(stream), Data: payload}, part, done)
	if err != nil {
		return nil, false, failed(err)
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		if c.mux.giveUp(req) {
			// The subscription may still be inside part: found is not touched again.
			return nil, false, failed(&command.Error{Outcome: command.OutcomeTimeout, Message: "the broker did not answer in time", Err: ctx.Err()})
		}
		err = <-ended
	}
	if err != nil {
		return nil, false, failed(err)
	}
	return found, more, nil
}

// endOfBatch reads the message that ends a batch: 204 after the last message,
// 404 where there was none.
func endOfBatch(msg *nats.Msg) (more bool, err error) {
	switch status := msg.Header.Get(headerStatus); status {
	case "204":
		pending, err := strconv.ParseUint(msg.Header.Get("Nats-Num-Pending"), 10, 64)
		return err == nil && pending > 0, nil
	case "404":
		return false, nil
	case "":
		_, err := parseStored(msg)
		return false, fmt.Errorf("%w: %w", ErrBadReply, err)
	case statusNoResponders:
		return false, &command.Error{Outcome: command.OutcomeFailed, Message: "the stream does not exist or JetStream is away; run `fleet provision`"}
	default:
		return false, fmt.Errorf("%w: status %s %s", ErrNATS, status, msg.Header.Get("Description"))
	}
}

// parseStored reads the answer to a direct get.
func parseStored(msg *nats.Msg) (stored, error) {
	seq, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return stored{}, fmt.Errorf("direct get without a sequence: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, msg.Header.Get("Nats-Time-Stamp"))
	if err != nil {
		return stored{}, fmt.Errorf("direct get without a time: %w", err)
	}
	subject := msg.Header.Get("Nats-Subject")
	if subject == "" {
		return stored{}, fmt.Errorf("direct get without a subject")
	}
	op := msg.Header.Get("KV-Operation")
	return stored{Subject: subject, Seq: seq, Time: at, Data: msg.Data, Deleted: op == "DEL" || op == "PURGE"}, nil
}

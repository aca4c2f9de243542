package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/directget"
)

// AuditEntry is one audit record as it was found.
type AuditEntry struct {
	Record   command.AuditRecord
	Raw      []byte    // as published; see command.AuditHash
	Seq      uint64    // in the stream
	StoredAt time.Time // by the broker's clock
}

// AuditFilter narrows a reading of the audit stream. The zero value is all of
// it.
type AuditFilter struct {
	Device string       // empty: all
	Verb   command.Verb // empty: all
	// From is the first sequence number in the stream, 1 where 0. Since, if set and
	// From is not, is the time from which on records were stored, by the broker's
	// clock.
	From  uint64
	Since time.Time
}

func (f AuditFilter) request() (getRequest, error) {
	device, verb := "*", "*"
	if f.Device != "" {
		if err := command.CheckDeviceID(f.Device); err != nil {
			return getRequest{}, err
		}
		device = f.Device
	}
	if f.Verb != "" {
		verb = string(command.AuditVerb(f.Verb))
	}
	req := getRequest{NextFor: "fleet.audit." + device + "." + verb, Seq: f.From}
	if f.From == 0 && !f.Since.IsZero() {
		req.StartTime = &f.Since
	}
	return req, nil
}

// Audit reads the stored audit records in the order in which they were stored.
// It needs the role fleet-auditor. A record that cannot be read is yielded with
// an error, its Raw set, and the reading goes on; any other error is a
// [*command.Error], comes with the zero entry, and ends the reading.
func (c *Client) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	return func(yield func(AuditEntry, error) bool) {
		req, err := f.request()
		if err == nil {
			err = c.scan(ctx, access.StreamAudit, req, func(m stored) bool { return yield(auditEntry(m)) })
		}
		if err != nil {
			yield(AuditEntry{}, err)
		}
	}
}

// How [Client.FollowAudit] waits for records.
const (
	followPoll   = 2 * time.Second        // however quiet it is
	followGather = 20 * time.Millisecond  // after word of a record, for those that come with it
	followRetry  = 100 * time.Millisecond // where a record that was announced is not stored yet
)

// FollowAudit is [Client.Audit] that goes on with new records until ctx ends,
// which is no error. Without From and Since it starts with what comes.
//
// It listens to what devices publish only to learn that there is something new,
// and reads it from the stream: after a lost connection nothing is missing and
// nothing comes twice. It ends with an error that matches [ErrDenied] where the
// role is missing, and where the connection was closed because the broker no
// longer accepts its credential.
func (c *Client) FollowAudit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	return func(yield func(AuditEntry, error) bool) {
		if err := c.follow(ctx, f, yield); err != nil && ctx.Err() == nil {
			yield(AuditEntry{}, err)
		}
	}
}

// follow ends with nil where the reader wants no more.
func (c *Client) follow(ctx context.Context, f AuditFilter, yield func(AuditEntry, error) bool) error {
	req, err := f.request()
	if err != nil {
		return err
	}
	word := make(chan struct{}, 1)
	sub, err := c.nc.Subscribe(req.NextFor, func(*nats.Msg) {
		select {
		case word <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return natsFault(err, "follow the audit records")
	}
	defer func() { _ = sub.Unsubscribe() }()
	if req.Seq == 0 && req.StartTime == nil {
		last, err := c.get(ctx, access.StreamAudit, getRequest{LastFor: "fleet.audit.*.*"})
		if err != nil {
			return err
		}
		req.Seq = 1
		for _, m := range last.messages {
			req.Seq = m.Seq + 1
		}
	}
	wait := time.NewTimer(0)
	defer wait.Stop()
	announced := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.ctx.Done():
			return fault(command.OutcomeFailed, ErrClosed, "follow the audit records")
		case <-word:
			if !announced { // not put off again by each record of many
				wait.Reset(followGather)
			}
			announced = true
			continue
		case <-wait.C:
		}
		found, more := false, true
		err := c.scan(ctx, access.StreamAudit, req, func(m stored) bool {
			found = true
			req.Seq, req.StartTime = m.Seq+1, nil
			more = yield(auditEntry(m))
			return more
		})
		switch {
		case !more:
			return nil
		case err != nil && !c.comesBack(err):
			return err
		}
		next := followPoll
		if announced && !found {
			next = followRetry
		}
		announced = false
		wait.Reset(next)
	}
}

// comesBack tells whether a read that failed may be tried again by itself: the
// connection is being made again, or the broker was slow.
func (c *Client) comesBack(err error) bool {
	if c.nc.IsClosed() || c.nc.IsDraining() {
		return false
	}
	return errors.Is(err, ErrTimeout) || (errors.Is(err, ErrNATS) && !errors.Is(err, directget.ErrNoStream))
}

func auditEntry(m stored) (AuditEntry, error) {
	entry := AuditEntry{Raw: m.Data, Seq: m.Seq, StoredAt: m.At}
	if entry.Raw == nil {
		entry.Raw = []byte{}
	}
	record, err := command.DecodeDocument[command.AuditRecord](m.Data)
	if err != nil {
		return entry, fmt.Errorf("audit record %d on %s: %w", m.Seq, m.Subject, err)
	}
	if m.Subject != command.AuditSubject(record.DeviceID, record.Verb) {
		return entry, fmt.Errorf("audit record %d on %s: it speaks of the device %.80q and verb %.80q", m.Seq, m.Subject, record.DeviceID, record.Verb)
	}
	entry.Record = record
	return entry, nil
}

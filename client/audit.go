package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// AuditEntry is one audit record as it was found.
type AuditEntry struct {
	Record   command.AuditRecord
	Raw      []byte    // as published; see command.AuditHash
	Seq      uint64    // in the stream; 0 in a live tail
	StoredAt time.Time // by the broker's clock; zero in a live tail
}

// AuditFilter narrows a reading of the audit stream. The zero value is all of
// it.
type AuditFilter struct {
	Device string
	Verb   command.Verb
}

func (f AuditFilter) subject() (string, error) {
	device, verb := "*", "*"
	if f.Device != "" {
		if err := command.CheckDeviceID(f.Device); err != nil {
			return "", err
		}
		device = f.Device
	}
	if f.Verb != "" {
		verb = string(command.AuditVerb(f.Verb))
	}
	return "fleet.audit." + device + "." + verb, nil
}

// Audit reads the stored audit records in the order in which they were stored.
// It needs the role fleet-auditor. A record that cannot be read is yielded as an
// error, and the reading goes on; any other error ends it.
func (c *Client) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	return func(yield func(AuditEntry, error) bool) {
		subject, err := f.subject()
		if err != nil {
			yield(AuditEntry{}, err)
			return
		}
		err = c.scan(ctx, access.StreamAudit, subject, 1, func(m stored) bool {
			entry, err := auditEntry(m.Subject, m.Data)
			entry.Seq, entry.StoredAt = m.Seq, m.Time
			return yield(entry, err)
		})
		if err != nil {
			yield(AuditEntry{}, about(err, "", f.Device, ""))
		}
	}
}

// FollowAudit yields audit records as devices publish them, until ctx ends. It
// needs the role fleet-auditor. A reader too slow for the broker gets an error,
// never a silent gap; the stored records are complete.
func (c *Client) FollowAudit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	return func(yield func(AuditEntry, error) bool) {
		subject, err := f.subject()
		if err != nil {
			yield(AuditEntry{}, err)
			return
		}
		sub, err := c.nc.SubscribeSync(subject)
		if err != nil {
			yield(AuditEntry{}, natsFault(err))
			return
		}
		defer func() { _ = sub.Unsubscribe() }()
		for {
			msg, err := sub.NextMsgWithContext(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				if !yield(AuditEntry{}, followFault(err)) || !errors.Is(err, nats.ErrSlowConsumer) {
					return
				}
				continue
			}
			if !yield(auditEntry(msg.Subject, msg.Data)) {
				return
			}
		}
	}
}

func followFault(err error) error {
	if errors.Is(err, nats.ErrPermissionViolation) {
		return &command.Error{Outcome: command.OutcomeDenied, Message: "this identity may not read the audit stream; it needs the role fleet-auditor", Err: err}
	}
	return natsFault(err)
}

func auditEntry(subject string, data []byte) (AuditEntry, error) {
	record, err := command.DecodeDocument[command.AuditRecord](data)
	if err != nil {
		return AuditEntry{Raw: data}, fmt.Errorf("audit record on %s: %w", subject, err)
	}
	return AuditEntry{Record: record, Raw: data}, nil
}

// Gap is a place where a device's chain of audit records does not hold: records
// are missing between two, or were changed.
type Gap struct {
	Device, Instance string
	After, Before    uint64 // sequence numbers within the instance; After is 0 across instances
	Reason           string
}

func (g Gap) String() string {
	return fmt.Sprintf("%s (instance %s): %s", g.Device, g.Instance, g.Reason)
}

// CheckChain looks for gaps in the chains of records, which must be unfiltered
// by verb. What lies before the first record of a device cannot be told: old
// records are dropped by the stream's limits.
func CheckChain(entries []AuditEntry) []Gap {
	var order []string
	chains := map[string][]AuditEntry{}
	for _, e := range entries {
		key := e.Record.DeviceID + "/" + e.Record.Instance
		if chains[key] == nil {
			order = append(order, key)
		}
		chains[key] = append(chains[key], e)
	}
	var gaps []Gap
	for _, key := range order {
		list := chains[key]
		slices.SortStableFunc(list, func(a, b AuditEntry) int { return cmp.Compare(a.Record.Seq, b.Record.Seq) })
		for i := 1; i < len(list); i++ {
			before, now := list[i-1].Record, list[i].Record
			gap := Gap{Device: now.DeviceID, Instance: now.Instance, After: before.Seq, Before: now.Seq}
			switch {
			case now.Seq == before.Seq && string(list[i].Raw) == string(list[i-1].Raw):
				continue // stored twice
			case now.Seq == before.Seq:
				gap.Reason = fmt.Sprintf("two different records have the number %d", now.Seq)
			case now.Seq != before.Seq+1:
				gap.Reason = fmt.Sprintf("%d records missing between %d and %d", now.Seq-before.Seq-1, before.Seq, now.Seq)
			case now.Prev != command.AuditHash(list[i-1].Raw):
				gap.Reason = fmt.Sprintf("record %d does not follow from record %d: one of them was changed", now.Seq, before.Seq)
			default:
				continue
			}
			gaps = append(gaps, gap)
		}
	}
	return gaps
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/spool"
)

// auditor keeps a record of every command and brings it to the broker. Records
// are published in order, one batch at a time, without an acknowledgement: a
// device has none to wait for. What counts is that the broker gives the last
// record of each verb back.
type auditor struct {
	device, bootID, instance string

	spool *spool.Spool
	state *state
	log   *slog.Logger
	delay time.Duration
	link  func() *link // the one to publish on; nil: none
	task  task

	// Used by the task alone, and by flush after it has stopped.
	retry    backoff
	verified connection // on which the broker's last record was compared
}

// connection is one life of a link.
type connection struct {
	link *link
	life uint64
}

const (
	auditBatchRecords = 128
	auditBatchBytes   = 128 << 10

	// A record must stay below what the broker's stream takes (16 KiB), whatever a
	// caller put into it. Escaped in JSON a byte takes at most six.
	maxAuditVerb   = 64
	maxAuditUser   = 1024
	maxAuditReason = 512
)

// confirmWaits are the pauses before the broker is asked for its last record: a
// stream without acknowledgements stores a little after it took.
var confirmWaits = []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond, time.Second}

func (a *auditor) init() {
	a.retry = backoff{least: time.Second, most: time.Minute}
	a.task.run = a.publish
}

// record keeps rec, on disk where the command changes something.
func (a *auditor) record(rec *command.AuditRecord, urgent bool) {
	rec.DeviceID, rec.BootID, rec.Instance = a.device, a.bootID, a.instance
	rec.Verb = command.Verb(cut(string(rec.Verb), maxAuditVerb))
	rec.Caller.User = cut(rec.Caller.User, maxAuditUser)
	rec.Caller.Account = cut(rec.Caller.Account, maxAuditUser)
	rec.Reason = cut(rec.Reason, maxAuditReason)
	if err := a.spool.Append(rec, urgent); err != nil {
		reason := "SpoolNotWritable"
		if errors.Is(err, spool.ErrFull) {
			reason = "SpoolFull"
		}
		if a.state.setCondition(command.ConditionAuditLost, true, reason, err.Error()) {
			a.log.Error("audit records are being lost", "error", err)
		}
	}
	a.task.poke()
}

// room tells whether a command that changes something can still be recorded.
func (a *auditor) room() bool { return a.spool.Room() }

// connected starts over from the oldest record that is not confirmed.
func (a *auditor) connected() {
	a.task.urge()
}

// publish brings everything to the broker, trying again until it has it, and
// returns early where there is no connection.
func (a *auditor) publish(ctx context.Context) {
	for a.spool.Pending() > 0 {
		// What fills a batch is not gathered any longer: a caller who asks without a
		// pause would otherwise fill the spool faster than it empties.
		if ctx.Err() != nil || a.spool.Pending() < auditBatchRecords && !sleep(ctx, a.delay) {
			return
		}
		l := a.link()
		if l == nil || !l.nc.IsConnected() {
			return // connected comes here again
		}
		// A batch that went out is followed to its end, also at a stop: whoever asks
		// again too soon finds less than is on its way, and sends it twice.
		batch, cancel := outlive(ctx, lastFlush)
		err := a.publishBatch(batch, l)
		cancel()
		if err == nil {
			a.retry.reset()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		wait := a.retry.wait()
		a.log.Warn("audit records are not at the broker yet; trying again", "pending", a.spool.Pending(), "in", wait.Round(time.Millisecond), "error", err)
		if !a.task.pause(ctx, wait) {
			return
		}
	}
	if a.spool.Lost() == 0 {
		a.state.setCondition(command.ConditionAuditLost, false, "", "")
	}
}

// flush makes one attempt to bring everything to the broker.
func (a *auditor) flush(ctx context.Context) error {
	for a.spool.Pending() > 0 {
		l := a.link()
		if l == nil || !l.nc.IsConnected() {
			return errors.New("not connected")
		}
		if err := a.publishBatch(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// spooled is a record with what is needed to publish it.
type spooled struct {
	data   []byte
	hash   string
	verb   command.Verb // of its subject
	stored bool
}

func (a *auditor) publishBatch(ctx context.Context, l *link) error {
	data, err := a.spool.Peek(auditBatchRecords, auditBatchBytes)
	var damage *spool.DamageError
	if errors.As(err, &damage) {
		a.state.setCondition(command.ConditionDamagedFile, true, "AuditSpool", damage.Error())
		a.log.Error("audit records went bad on disk", "error", damage)
	} else if err != nil {
		return err
	}
	if len(data) == 0 {
		return nil
	}
	batch := make([]spooled, len(data))
	last := map[command.Verb]int{} // index of the last record of each verb
	for i, d := range data {
		var rec struct {
			Verb command.Verb `json:"verb"`
		}
		if err := json.Unmarshal(d, &rec); err != nil {
			return fmt.Errorf("audit record: %w", err)
		}
		verb := command.AuditVerb(rec.Verb)
		batch[i] = spooled{data: d, hash: command.AuditHash(d), verb: verb}
		last[verb] = i
	}

	here := connection{l, l.life()}
	if a.verified != here {
		// What an earlier run, connection or attempt has brought there is not sent
		// again. The broker would not notice: message ids are shared by all devices of
		// a stream, so that another device could use one up, and none are sent.
		for verb := range last {
			if err := a.markStored(ctx, l, batch, verb); err != nil {
				return err
			}
		}
	}
	a.verified = connection{} // until this batch has arrived
	for i := range batch {
		if batch[i].stored {
			continue
		}
		if err := l.nc.Publish(command.AuditSubject(a.device, batch[i].verb), batch[i].data); err != nil {
			return err
		}
	}
	for verb, i := range last {
		if !batch[i].stored {
			if err := a.confirm(ctx, l, verb, batch[i].hash); err != nil {
				return err
			}
		}
	}
	// Everything before the last record of a verb is there too, since it went the
	// same way; unless that was another connection.
	if l.life() != here.life {
		return errors.New("the connection changed meanwhile")
	}
	a.verified = here
	return a.spool.Confirm(len(batch))
}

// markStored finds the broker's last record of a verb in batch, and marks it and
// those of the verb before it.
func (a *auditor) markStored(ctx context.Context, l *link, batch []spooled, verb command.Verb) error {
	hash, err := a.lastStored(ctx, l, verb)
	if err != nil || hash == "" {
		return err
	}
	for i := len(batch) - 1; i >= 0; i-- {
		if batch[i].verb != verb || batch[i].hash != hash {
			continue
		}
		for j := range batch[:i+1] {
			batch[j].stored = batch[j].stored || batch[j].verb == verb
		}
		return nil
	}
	return nil
}

func (a *auditor) confirm(ctx context.Context, l *link, verb command.Verb, want string) error {
	for _, wait := range confirmWaits {
		if wait > 0 && !sleep(ctx, wait) {
			return ctx.Err()
		}
		hash, err := a.lastStored(ctx, l, verb)
		if err != nil {
			return err
		}
		if hash == want {
			return nil
		}
	}
	return fmt.Errorf("the last record under %s is not the one that was sent", command.AuditSubject(a.device, verb))
}

// lastStored is the hash of the broker's last record of a verb, empty where it
// has none.
func (a *auditor) lastStored(ctx context.Context, l *link, verb command.Verb) (string, error) {
	m, found, err := l.lastOn(ctx, access.StreamAudit, command.AuditSubject(a.device, verb))
	if err != nil || !found {
		return "", err
	}
	return command.AuditHash(m.Data), nil
}

// cut shortens a string that came from outside, to n bytes of valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

package broker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// ProvisionOptions are the limits that depend on the size of the broker. The
// zero value suits a single server.
type ProvisionOptions struct {
	Replicas int // default 1; 3 for a cluster of three

	// AuditPerSubject is how many records are kept per device and verb; default
	// 1000. Limits are per subject so that pings cannot push exec records out.
	AuditPerSubject int64
	AuditMaxAge     time.Duration // default 0: no limit
}

// Limits that do not depend on the size of the broker.
const (
	maxHeartbeat        = 8 << 10  // bytes
	maxAuditRecord      = 16 << 10 // bytes
	maxLabels           = 32 << 10 // bytes
	jobHistory          = 32       // results kept per device and slot
	jobMaxAge           = 7 * 24 * time.Hour
	desiredStateHistory = 10      // revisions kept per device
	maxStreamOverhead   = 4 << 10 // bytes of headers beside a document

	// noDuplicates is the shortest window that the server takes. Within it, a
	// message id (Nats-Msg-Id) suppresses another device's message with that id;
	// no device sends one.
	noDuplicates = 100 * time.Millisecond
)

// Change is one thing that [Provision] did.
type Change struct {
	Stream string // name of the stream, or of the stream behind a bucket
	Action string // "created", "updated" or "unchanged"
}

// Streams are the configurations of every stream and bucket, in the order in
// which they are made.
func Streams(o ProvisionOptions) []jetstream.StreamConfig {
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.AuditPerSubject == 0 {
		o.AuditPerSubject = 1000
	}
	// Nothing is deleted, purged or rolled up by request: a reply subject is not
	// permission-checked, so that whoever may publish could have the broker's own
	// answer delivered to such a request.
	base := jetstream.StreamConfig{
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		Replicas: o.Replicas, AllowDirect: true, DenyDelete: true, DenyPurge: true,
	}
	last := func(name, description, subject string, maxSize int32) jetstream.StreamConfig {
		s := base
		s.Name, s.Description, s.Subjects = name, description, []string{subject}
		s.MaxMsgsPerSubject, s.MaxMsgSize, s.NoAck, s.Duplicates = 1, maxSize, true, noDuplicates
		return s
	}
	bucket := func(name, description string, history int64, maxSize int32) jetstream.StreamConfig {
		s := base
		s.Name, s.Description, s.Subjects = access.KVStream(name), description, []string{"$KV." + name + ".>"}
		s.MaxMsgsPerSubject, s.MaxMsgSize, s.Discard = history, maxSize, jetstream.DiscardNew
		return s
	}
	audit := base
	audit.Name, audit.Description = access.StreamAudit, "one record per command and device"
	for _, verb := range append(command.Verbs(), command.AuditOther) {
		audit.Subjects = append(audit.Subjects, command.AuditSubject("*", verb))
	}
	audit.MaxMsgsPerSubject, audit.MaxMsgSize, audit.NoAck = o.AuditPerSubject, maxAuditRecord, true
	audit.MaxAge, audit.Duplicates = o.AuditMaxAge, noDuplicates

	jobs := base
	jobs.Name, jobs.Description = access.StreamJobs, "how each device's part of a job ended"
	for _, slot := range command.AllJobSlots() {
		jobs.Subjects = append(jobs.Subjects, command.JobSubject("*", slot))
	}
	jobs.MaxMsgsPerSubject, jobs.MaxAge, jobs.NoAck = jobHistory, jobMaxAge, true
	jobs.MaxMsgSize, jobs.Duplicates = command.MaxJobResult+maxStreamOverhead, noDuplicates

	heartbeat := last(access.StreamHeartbeat, "last heartbeat of each device", command.HeartbeatSubject("*"), maxHeartbeat)
	heartbeat.RePublish = &jetstream.RePublish{Source: command.HeartbeatSubject("*"), Destination: command.SeenSubject("{{wildcard(1)}}")}
	desired := bucket(command.DesiredStateBucket, "what each device should run", desiredStateHistory, command.MaxDocument+maxStreamOverhead)
	desired.RePublish = &jetstream.RePublish{Source: command.DesiredStateSubject("*"), Destination: desiredAgain + ".{{wildcard(1)}}"}

	return []jetstream.StreamConfig{
		last(access.StreamStatus, "last status of each device", command.StatusSubject("*"), command.MaxDocument+maxStreamOverhead),
		heartbeat,
		audit,
		jobs,
		desired,
		bucket(command.DeviceLabelsBucket, "labels that operators give to devices", 1, maxLabels),
	}
}

// Provision makes the streams and buckets of the DATA account, or brings them
// to their configuration; nc must be in that account with the right to do so.
// It is idempotent: what is as it should be is left alone.
func Provision(ctx context.Context, nc *nats.Conn, o ProvisionOptions) ([]Change, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("provision: %w", err)
	}
	var changes []Change
	for _, want := range Streams(o) {
		action, err := provisionStream(ctx, js, want)
		if err != nil {
			return changes, provisionFault(want.Name, err)
		}
		changes = append(changes, Change{Stream: want.Name, Action: action})
	}
	return changes, nil
}

// provisionFault says what JetStream said. Only where it said nothing may the role
// be what is missing: the broker drops a request that is not allowed.
func provisionFault(stream string, err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return fmt.Errorf("provision %s: JetStream refuses it: %w", stream, err)
	}
	return fmt.Errorf("provision %s: %w; JetStream must run there, and the connection needs the role %s or %s in the data account",
		stream, err, access.RoleController, access.RoleAdmin)
}

func provisionStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (action string, err error) {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err := js.CreateStream(ctx, want)
		return "created", err
	}
	if err != nil {
		return "", err
	}
	before := stream.CachedInfo().Config
	updated, err := js.UpdateStream(ctx, want)
	if err != nil {
		return "", err
	}
	if reflect.DeepEqual(before, updated.CachedInfo().Config) {
		return "unchanged", nil
	}
	return "updated", nil
}

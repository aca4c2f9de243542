package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// The parts of what is known of a device; each comes from a stream of its own.
const (
	partStatus = iota
	partHeartbeat
	partDocument
	partLabels
	partCount
)

// partNames are those of logs and metrics.
var partNames = [partCount]string{"status", "heartbeat", "desired-state", "device-labels"}

const (
	// What a consumer has on its way at most; statuses and documents have up to half
	// a MiB.
	pullMessages = 1000
	pullBytes    = 8 << 20
	// pullBeat is how often the broker says that there is nothing; after two that are
	// missing, the consumer is made anew.
	pullBeat = 5 * time.Second
	// orphanAfter is how long the broker keeps a consumer that nobody asks.
	orphanAfter = time.Minute
)

// message is one of a stream.
type message struct {
	device string
	seq    uint64
	stored time.Time
	msg    jetstream.Msg
}

func (m message) deleted() bool { return m.msg.Headers().Get("KV-Operation") != "" }

// feed follows one stream. Only its own goroutine touches what is not atomic.
type feed struct {
	part    int
	stream  string
	prefix  string // of the subjects; the device id follows
	headers bool   // only the headers are wanted
	take    func(message)
	m       *Mirror

	created time.Time // of the stream that cursor speaks of
	cursor  uint64    // the sequence of the last message that was taken
	epoch   atomic.Uint64

	caughtUp atomic.Bool   // everything that was stored when the consumer was made was taken
	pending  atomic.Uint64 // how many the broker holds that were not taken
}

func (m *Mirror) newFeeds() []*feed {
	return []*feed{
		{part: partStatus, stream: access.StreamStatus, prefix: command.StatusSubject(""), take: m.takeStatus, m: m},
		{part: partHeartbeat, stream: access.StreamHeartbeat, prefix: command.HeartbeatSubject(""), headers: true, take: m.takeHeartbeat, m: m},
		{part: partDocument, stream: access.KVStream(command.DesiredStateBucket), prefix: command.DesiredStateSubject(""), take: m.takeDocument, m: m},
		{part: partLabels, stream: access.KVStream(command.DeviceLabelsBucket), prefix: command.DeviceLabelsSubject(""), take: m.takeLabels, m: m},
	}
}

// errGap: a message is missing between two that arrived.
var errGap = errors.New("messages were lost on the way; reading again")

// follow takes the messages of the stream until something fails.
func (f *feed) follow(ctx context.Context, js jetstream.JetStream) error {
	asked, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := js.Stream(asked, f.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return errors.New("there is no such stream; run fleet provision, or set provision = true")
	}
	if err != nil {
		return fmt.Errorf("ask for it: %w", err)
	}
	info := stream.CachedInfo()
	if !info.Created.Equal(f.created) || info.State.LastSeq < f.cursor {
		// Another stream of that name: what is not in it does not exist any more.
		f.created, f.cursor = info.Created, 0
		f.epoch.Add(1)
	}
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubject: f.prefix + ">",
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1,
		InactiveThreshold: orphanAfter, HeadersOnly: f.headers,
	}
	if f.cursor > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.cursor+1
	}
	consumer, err := stream.CreateConsumer(asked, cfg)
	if err != nil {
		return fmt.Errorf("make a consumer: %w", err)
	}
	defer func() {
		// At worst the broker does it itself after orphanAfter.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stream.DeleteConsumer(ctx, consumer.CachedInfo().Name)
	}()
	it, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(pullMessages, pullBytes),
		jetstream.PullHeartbeat(pullBeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("ask for messages: %w", err)
	}
	defer it.Stop()
	f.progress(consumer.CachedInfo().NumPending)
	for delivered := uint64(1); ; delivered++ {
		msg, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("next message: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("message without metadata: %w", err)
		}
		if meta.Sequence.Consumer != delivered {
			return errGap
		}
		if device, ok := strings.CutPrefix(msg.Subject(), f.prefix); ok && command.CheckDeviceID(device) == nil {
			f.take(message{device: device, seq: meta.Sequence.Stream, stored: meta.Timestamp, msg: msg})
		}
		f.cursor = meta.Sequence.Stream
		// The last message of a stream is the last of its subject too, so that it comes
		// whatever becomes of others meanwhile.
		pending := meta.NumPending
		if f.cursor >= info.State.LastSeq && !f.caughtUp.Load() {
			pending = 0
		}
		f.progress(pending)
	}
}

// progress keeps how much is left, and says when for the first time nothing is.
func (f *feed) progress(pending uint64) {
	f.pending.Store(pending)
	if pending == 0 && !f.caughtUp.Load() {
		f.m.sweep(f.part, f.epoch.Load())
		f.caughtUp.Store(true)
		f.m.setCurrent()
	}
}

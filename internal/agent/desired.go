package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

// watcher follows the desired state. A write of the key reaches the device as a
// plain message, which is only a hint: messages can be lost, and anybody's
// message on that subject looks the same. What counts is what the bucket holds,
// read by direct get.
type watcher struct {
	device string
	state  *state
	log    *slog.Logger
	link   func() *link
	task   task
	retry  backoff
	// keep stores what was read, for a start without a broker.
	keep func(keptDesired) error
	// apply takes each new document. One without deployments means that everything
	// is to be removed.
	apply func(reconcile.Desired)

	mu   sync.Mutex
	hint bool        // a write was announced and not found yet
	seen keptDesired // the newest that was read
}

// hintWaits are the pauses between looks for a write that was announced: the
// message may be ahead of what a direct get sees.
var hintWaits = []time.Duration{50 * time.Millisecond, 250 * time.Millisecond, time.Second}

func (w *watcher) init() {
	w.retry = backoff{least: time.Second, most: 30 * time.Second}
	w.task.run = w.read
}

// announced is called for each message on the key's subject.
func (w *watcher) announced() {
	w.mu.Lock()
	w.hint = true
	w.mu.Unlock()
	w.task.urge()
}

// read reads the bucket until it has an answer and, after a hint, until it finds
// something newer or gives up.
func (w *watcher) read(ctx context.Context) {
	w.mu.Lock()
	hint := w.hint
	w.hint = false
	w.mu.Unlock()
	waits := hintWaits
	for {
		l := w.link()
		if l == nil || !l.nc.IsConnected() {
			return // each connect reads again
		}
		newer, err := w.readOnce(ctx, l)
		var wait time.Duration
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = w.retry.wait()
			w.log.Warn("the desired state cannot be read; what runs goes on", "in", wait.Round(time.Millisecond), "error", err)
		case newer || !hint || len(waits) == 0:
			w.retry.reset()
			return
		default:
			wait, waits = waits[0], waits[1:]
		}
		if !w.task.pause(ctx, wait) {
			return
		}
	}
}

func (w *watcher) readOnce(ctx context.Context, l *link) (newer bool, err error) {
	subject := command.DesiredStateSubject(w.device)
	m, found, err := l.lastOn(ctx, access.KVStream(command.DesiredStateBucket), subject)
	if err != nil || !found {
		return false, err // nothing was ever written: keep what runs
	}
	read := keptDesired{DeviceID: w.device, Revision: m.Seq, Stored: m.At, Deleted: m.Deleted, document: m.Data}
	if read.Deleted {
		read.document = nil
	}
	w.mu.Lock()
	newer = read.newerThan(w.seen)
	if newer {
		w.seen = read
	}
	w.mu.Unlock()
	if newer {
		w.take(read) // writes to the disk: without the lock, which hints wait for
	}
	return newer, nil
}

// restore takes up what an earlier run kept.
func (w *watcher) restore(kept keptDesired) {
	w.mu.Lock()
	w.seen = kept
	w.mu.Unlock()
	if doc, err := kept.decode(); err == nil {
		w.log.Info("going on from the desired state of the last run", "revision", kept.Revision, "deployments", len(doc.Deployments))
		w.apply(reconcile.Desired{Revision: kept.Revision, State: doc})
	}
}

// take decodes a new revision and hands it on.
func (w *watcher) take(read keptDesired) {
	doc, err := read.decode()
	if err != nil {
		w.log.Error("desired state cannot be read; what ran before goes on", "revision", read.Revision, "error", err)
		w.state.setUnreadable(read.Revision, fmt.Sprintf("revision %d: %v", read.Revision, err))
		return
	}
	if read.Deleted {
		w.log.Info("desired state was deleted: everything is to be removed", "revision", read.Revision)
	} else {
		w.log.Info("desired state received", "revision", read.Revision, "deployments", len(doc.Deployments))
	}
	_, rejected := doc.Split()
	for _, name := range slices.Sorted(maps.Keys(rejected)) {
		w.log.Error("a deployment is rejected; what ran of it goes on", "deployment", cut(name, 80), "revision", read.Revision, "error", rejected[name].Message)
	}
	// Before anything is done about it: what runs is then never newer than what the
	// next run knows.
	err = w.keep(read)
	if err != nil {
		w.log.Error("desired state cannot be kept; a restart without the broker would go on from an older one", "revision", read.Revision, "error", err)
	}
	w.state.setKept(err)
	w.apply(reconcile.Desired{Revision: read.Revision, State: doc})
}

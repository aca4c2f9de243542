package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// desiredDocument is a desired state as it was read: no deployments means that
// everything is to be removed.
type desiredDocument struct {
	revision    uint64
	deployments map[string]command.Score
}

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
	// apply takes each new document; the reconciler will be here.
	apply func(desiredDocument)

	mu   sync.Mutex
	hint bool   // a write was announced and not found yet
	seen uint64 // newest revision read
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
	msg, err := directGetLast(ctx, l, access.KVStream(command.DesiredStateBucket), subject)
	if err != nil || msg == nil {
		return false, err // nothing was ever written: keep what runs
	}
	if got := msg.Header.Get("Nats-Subject"); got != subject {
		return false, fmt.Errorf("the broker answered with subject %.80q instead of %s", got, subject)
	}
	revision, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return false, errors.New("the broker's answer carries no sequence number")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if revision <= w.seen {
		return false, nil
	}
	w.seen = revision
	w.take(revision, msg)
	return true, nil
}

// take decodes a new revision and hands it on.
func (w *watcher) take(revision uint64, msg *nats.Msg) {
	if op := msg.Header.Get("KV-Operation"); op == "DEL" || op == "PURGE" {
		w.log.Info("desired state was deleted: everything is to be removed", "revision", revision)
		w.apply(desiredDocument{revision: revision})
		return
	}
	doc, err := command.DecodeDocument[command.DesiredState](msg.Data)
	if err != nil {
		w.log.Error("desired state cannot be read; what ran before goes on", "revision", revision, "error", err)
		w.state.setUnreadable(revision, fmt.Sprintf("revision %d: %v", revision, err))
		return
	}
	w.log.Info("desired state received", "revision", revision, "deployments", len(doc.Deployments))
	for name, score := range doc.Deployments {
		if e := checkScore(score); e != nil {
			w.log.Error("a deployment is rejected", "deployment", cut(name, 80), "revision", revision, "error", e.Message)
		}
	}
	w.apply(desiredDocument{revision: revision, deployments: doc.Deployments})
}

// checkScore refuses what this agent cannot run, whatever the engine.
func checkScore(score command.Score) *command.Error {
	if score.Type != command.ScorePodmanV0 {
		return command.NewError(command.KindBadRequest, "score type %.80q is not known to this agent; it knows %s", score.Type, command.ScorePodmanV0)
	}
	var data command.PodmanV0
	if err := json.Unmarshal(score.Data, &data); err != nil {
		return command.NewError(command.KindBadRequest, "data of a %s score: %v", command.ScorePodmanV0, err)
	}
	return nil
}

// scoreStatus is where a deployment stands on an agent that does not run
// containers yet.
func scoreStatus(score command.Score, revision uint64, runtime command.RuntimeState) command.DeploymentStatus {
	status := command.DeploymentStatus{Revision: revision}
	fail := func(phase command.Phase, e *command.Error) command.DeploymentStatus {
		status.Phase, status.Error = phase, &command.ErrorDetail{Kind: e.Kind, Message: cut(e.Message, 512)}
		return status
	}
	if e := checkScore(score); e != nil {
		return fail(command.PhaseRejected, e)
	}
	switch runtime {
	case command.RuntimeDisabled:
		return fail(command.PhaseRuntimeUnavailable, command.NewError(command.KindRuntimeUnavailable, "this agent has no container engine: runtime_enabled = false"))
	case command.RuntimeUnavailable:
		return fail(command.PhaseRuntimeUnavailable, command.NewError(command.KindRuntimeUnavailable, "the container engine does not answer"))
	}
	return fail(command.PhasePending, command.NewError(command.KindRuntimeUnavailable, "the engine is ready, but this version of the agent does not run containers yet"))
}

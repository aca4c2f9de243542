package agent

import (
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

func newState() *state {
	return &state{now: time.Now, changed: make(chan struct{}, 1), runtime: command.RuntimeUnavailable}
}

// TestReadyIsJudgedByTheLatest: the desired state and the report of what runs
// come from two goroutines; whichever ends last, Ready speaks of both.
func TestReadyIsJudgedByTheLatest(t *testing.T) {
	t.Parallel()
	s := newState()
	for revision := uint64(1); revision <= 3000; revision++ {
		var both sync.WaitGroup
		both.Go(func() { s.setDesired(reconcile.Desired{Revision: revision}) })
		both.Go(func() { s.setReport(reconcile.Report{Runtime: command.RuntimeReady, Revision: revision}) })
		both.Wait()
		if !s.conditionHolds(command.ConditionReady) {
			t.Fatalf("revision %d is taken up, and Ready does not hold", revision)
		}
	}
}

// TestNoStatusIsReadyForARevisionThatIsNew: whoever waits for a revision and for
// Ready must not take the Ready of the one before.
func TestNoStatusIsReadyForARevisionThatIsNew(t *testing.T) {
	t.Parallel()
	s := newState()
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var status command.Status
			s.fill(&status)
			if status.DesiredRevision%2 == 1 && condition(status, command.ConditionReady) {
				t.Errorf("revision %d was never taken up, and is Ready", status.DesiredRevision)
				return
			}
		}
	})
	for revision := uint64(2); revision <= 6000; revision += 2 {
		s.setDesired(reconcile.Desired{Revision: revision})
		s.setReport(reconcile.Report{Runtime: command.RuntimeReady, Revision: revision})
		s.setDesired(reconcile.Desired{Revision: revision + 1})
	}
	close(stop)
	reader.Wait()
}

// TestAStatusFromBeforeTheStreamsIsStoredInTheEnd: an agent may connect to a broker
// that is not provisioned yet, where its status is stored nowhere.
func TestAStatusFromBeforeTheStreamsIsStoredInTheEnd(t *testing.T) {
	w := newWorld(t)
	js, err := jetstream.New(w.data)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), access.StreamStatus); err != nil {
		t.Fatal(err)
	}
	o := w.options("d1")
	o.ResyncInterval = 300 * time.Millisecond
	start(t, o)
	w.awaitPing("d1")
	if _, err := broker.Provision(t.Context(), w.data, broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	w.awaitStatus("d1", "published again", func(command.Status) bool { return true })
}

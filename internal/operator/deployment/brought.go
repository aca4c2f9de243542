package deployment

import (
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/operator/rollout"
)

// brought is the rollout of one revision of a Deployment.
type brought struct {
	revision   int64
	generation int64 // in which it was last looked at
	memory     *rollout.Memory
	stopped    string // why it has stopped by itself; empty: it has not

	mu        sync.Mutex
	conflicts map[string]conflict
}

// conflict is why the desired state of a device, of that revision, cannot take the
// score.
type conflict struct {
	revision uint64
	why      string
}

// newBrought is a rollout that starts now, or goes on where the status says that
// another operator has left it.
func newBrought(d *v1alpha1.Deployment, revision int64, now time.Time, goesOn bool) *brought {
	b := &brought{revision: revision, generation: d.Generation, conflicts: map[string]conflict{}}
	if !goesOn || d.Status.RolloutStartedAt == nil || d.Status.Revision != revision {
		b.memory = rollout.NewMemory(now)
		return b
	}
	b.generation = d.Status.ObservedGeneration
	b.memory = rollout.RestoreMemory(d.Status.RolloutStartedAt.Time, d.Status.Phase == v1alpha1.RolloutComplete)
	if d.Status.Phase == v1alpha1.RolloutStopped {
		b.stopped = "it stopped before the operator was started"
		if c := condition(d, v1alpha1.DeploymentProgressing); c != nil && c.Message != "" {
			b.stopped = c.Message
		}
	}
	return b
}

func (b *brought) refuse(d mirror.Device, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conflicts[d.ID] = conflict{revision: d.Document.Revision, why: why}
}

// refused says why the desired state of the device cannot take the score.
func (b *brought) refused(d mirror.Device) (why string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.conflicts[d.ID]
	return c.why, ok && c.revision == d.Document.Revision
}

// retain forgets the devices that are not members.
func (b *brought) retain(members map[string]struct{}) {
	b.memory.Retain(func(id string) bool { _, ok := members[id]; return ok })
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.conflicts {
		if _, ok := members[id]; !ok {
			delete(b.conflicts, id)
		}
	}
}

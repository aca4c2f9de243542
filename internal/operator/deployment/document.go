package deployment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// with gives the document with the score under the Deployment's name.
func with(doc mirror.Document, key types.NamespacedName, score command.Score) (command.DesiredState, map[string]string) {
	state, owners := without(doc, key)
	state.Deployments[key.Name], owners[key.Name] = score, key.String()
	return state, owners
}

// without gives the document without the Deployment's name.
func without(doc mirror.Document, key types.NamespacedName) (command.DesiredState, map[string]string) {
	state := command.DesiredState{Schema: command.Schema, Deployments: map[string]command.Score{}}
	maps.Copy(state.Deployments, doc.State.Deployments)
	delete(state.Deployments, key.Name)
	owners := map[string]string{}
	for name, owner := range doc.Owners {
		if _, ok := state.Deployments[name]; ok {
			owners[name] = owner
		}
	}
	return state, owners
}

// clash says what the device would reject because the score is beside what is there;
// empty: nothing. A type that only devices know is theirs to reject.
func clash(doc mirror.Document, key types.NamespacedName, score command.Score) string {
	before, _ := without(doc, key)
	after, _ := with(doc, key, score)
	_, was := before.Split()
	_, is := after.Split()
	if fault := is[key.Name]; fault != nil && score.Type == command.ScorePodmanV0 {
		return fault.Message
	}
	for name, fault := range is {
		if name != key.Name && was[name] == nil {
			return fault.Message
		}
	}
	return ""
}

// bring writes the score to devices. again is true where a write has to be tried
// again; what cannot be written at all is remembered as refused.
func (r *reconciler) bring(ctx context.Context, key types.NamespacedName, st *state, ids []string) (again bool) {
	return r.each(ctx, key, ids, func(ctx context.Context, d mirror.Device) error {
		if why := clash(d.Document, key, st.goal.score); why != "" {
			st.brought.refuse(d, why)
			return nil
		}
		state, owners := with(d.Document, key, st.goal.score)
		_, err := r.mirror.Put(ctx, d.ID, d.Document.Revision, state, owners)
		if errors.Is(err, mirror.ErrTooLarge) {
			st.brought.refuse(d, err.Error())
			return nil
		}
		return err
	})
}

// take removes the Deployment's key from devices that have it from it.
func (r *reconciler) take(ctx context.Context, key types.NamespacedName, st *state, ids []string) (again bool) {
	var mu sync.Mutex
	return r.each(ctx, key, ids, func(ctx context.Context, d mirror.Device) error {
		if owner, ok := ownerKey(key.Name, d.Document.Owners[key.Name]); !ok || owner != key {
			return nil
		}
		state, owners := without(d.Document, key)
		revision, err := r.mirror.Put(ctx, d.ID, d.Document.Revision, state, owners)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			st.removed[d.ID] = revision
		}
		return err
	})
}

// each writes to several devices at one time. The first fault that is not a conflict
// ends it: the broker is away, and would be for each of thousands.
func (r *reconciler) each(ctx context.Context, key types.NamespacedName, ids []string, write func(context.Context, mirror.Device) error) (again bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan string)
	var wg sync.WaitGroup
	var conflicts sync.Once
	for range min(r.opts.Writers, len(ids)) {
		wg.Go(func() {
			for id := range work {
				d, ok := r.mirror.Device(id)
				if !ok || ctx.Err() != nil {
					continue
				}
				if err := write(ctx, d); errors.Is(err, mirror.ErrConflict) {
					conflicts.Do(func() { again = true })
				} else if err != nil {
					cancel(fmt.Errorf("%s: %w", id, err))
				}
			}
		})
	}
	for _, id := range ids {
		work <- id
	}
	close(work)
	wg.Wait()
	if ctx.Err() != nil {
		r.log.Warn("a desired state was not written; it is tried again", "deployment", key, "error", context.Cause(ctx))
		return true
	}
	return again
}

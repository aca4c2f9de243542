package reconcile

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// wanted is a service that is to run.
type wanted struct {
	key
	spec   command.Service
	hash   string
	frozen bool // its deployment was rejected: what is there goes on, and no more is known of it
}

// plan starts every step that can be made now, and says when the next one can.
func (r *Reconciler) plan(ctx context.Context, g *goal) time.Duration {
	now := r.opts.Now()
	by := map[key][]engine.Container{}
	for _, c := range r.seen {
		k := key{c.Labels.Deployment, c.Labels.Service}
		by[k] = append(by[k], c)
	}
	all := r.wanted(g, by)
	here := map[key]bool{}
	current := map[string]bool{} // containers that are as desired
	for _, w := range all {
		here[w.key] = true
		u := r.units[w.key]
		if u == nil {
			u = &unit{key: w.key}
			r.units[w.key] = u
		}
		u.about(w.hash)
		if u.step != nil && u.step.hash != w.hash {
			u.step.cancel() // of a spec that is not desired any more
		}
		if c, ok := r.current(u, by[w.key]); ok {
			current[c.ID] = true
		}
	}
	for k, u := range r.units {
		if here[k] {
			continue
		}
		if u.step != nil {
			u.step.cancel()
			continue // when it has ended, what it made is removed
		}
		delete(r.units, k)
	}
	// What is not as desired and was not made for what is desired goes first; the
	// last one that was made of each deployment before the others.
	r.removeOrphans(ctx, here)
	next := time.Duration(1<<63 - 1)
	for _, w := range all {
		if at := r.advance(ctx, g, w, by[w.key], current); !at.IsZero() {
			next = min(next, max(at.Sub(now), 0))
		}
	}
	return min(next, r.checkHealth(ctx))
}

// wanted lists the services in the order in which they start.
func (r *Reconciler) wanted(g *goal, by map[key][]engine.Container) []wanted {
	var all []wanted
	for name, services := range g.services {
		for _, s := range services {
			all = append(all, wanted{key: key{name, s.Name}, spec: s, hash: hashOf(s)})
		}
	}
	for k, list := range by {
		if g.rejected[k.deployment] == nil {
			continue
		}
		best := slices.MaxFunc(list, func(a, b engine.Container) int {
			return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Created.Compare(b.Created))
		})
		all = append(all, wanted{
			key: k, hash: best.Labels.Hash, frozen: true,
			spec: command.Service{Name: k.service, Image: best.Image, Restart: best.Labels.Restart},
		})
	}
	slices.SortStableFunc(all, func(a, b wanted) int { return cmp.Compare(a.deployment, b.deployment) })
	return all
}

// rank prefers the container that runs, and has its ports; 0 is one that cannot be used any more.
func rank(c engine.Container) int {
	switch c.State {
	case engine.StateRunning, engine.StatePaused, engine.StateRestarting, engine.StateStopping:
		return 2
	case engine.StateRemoving, engine.StateDead:
		return 0
	}
	return 1
}

// current finds the container that is as the unit wants it.
func (r *Reconciler) current(u *unit, list []engine.Container) (engine.Container, bool) {
	var best engine.Container
	for _, c := range list {
		fits := c.Labels.Hash == u.hash && (u.wantImage == "" || c.ImageID == u.wantImage)
		if !fits || rank(c) == 0 || r.removals[c.ID] != nil {
			continue
		}
		if best.ID == "" || rank(c) > rank(best) || rank(c) == rank(best) && c.Created.Before(best.Created) {
			best = c
		}
	}
	return best, best.ID != ""
}

// removeOrphans removes the containers of services that are not desired, of each
// deployment one after the other, the newest first.
func (r *Reconciler) removeOrphans(ctx context.Context, here map[key]bool) {
	newest := map[string]engine.Container{}
	busy := map[string]bool{}
	for _, c := range r.seen {
		k := key{c.Labels.Deployment, c.Labels.Service}
		if here[k] {
			continue
		}
		if r.removals[c.ID] != nil || r.units[k] != nil {
			busy[k.deployment] = true
		}
		if best, ok := newest[k.deployment]; !ok || c.Created.After(best.Created) ||
			c.Created.Equal(best.Created) && c.Labels.Service > best.Labels.Service {
			newest[k.deployment] = c
		}
	}
	for deployment, c := range newest {
		if !busy[deployment] {
			r.remove(ctx, c)
		}
	}
}

// advance starts the next step of a service, if there is one that can be made
// now. It returns when the service is to be looked at again, zero for no time.
func (r *Reconciler) advance(ctx context.Context, g *goal, w wanted, list []engine.Container, current map[string]bool) time.Time {
	u := r.units[w.key]
	c, found := r.current(u, list)
	// Others that hold what this one needs go before it starts.
	var blockers []engine.Container
	claims := claimsOf(w.spec)
	for _, o := range r.seen {
		if !current[o.ID] && rank(o) == 2 && overlap(claims, o.Labels.Claims) {
			blockers = append(blockers, o)
		}
	}
	for _, o := range list {
		if rank(o) == 0 {
			r.remove(ctx, o) // of no use to anybody, and its name is needed
		}
	}
	if found && !w.frozen {
		for _, o := range list {
			// As long as the new one never ran, the old one is left to, unless it is in
			// the way.
			if o.ID != c.ID && (c.State != engine.StateCreated || slices.ContainsFunc(blockers, func(b engine.Container) bool { return b.ID == o.ID })) {
				r.remove(ctx, o)
			}
		}
	}
	if u.step != nil {
		return time.Time{}
	}
	refresh := w.spec.Pull == command.PullAlways && u.checked != g.Revision && !w.frozen
	if found && c.State == engine.StateRunning && !refresh {
		if d := r.details[c.ID]; u.failures > 0 {
			if ran := r.opts.Now().Sub(d.StartedAt); ran < r.opts.BackoffReset {
				return r.opts.Now().Add(r.opts.BackoffReset - ran)
			}
			u.forget()
		}
		return time.Time{}
	}
	restart, runs := false, true
	switch {
	case !found && w.frozen:
		return time.Time{}
	case !found:
		if slices.ContainsFunc(list, func(o engine.Container) bool { return r.removals[o.ID] != nil && o.Labels.Hash == u.hash }) {
			return time.Time{} // its name is free when that is over
		}
	case c.State == engine.StateExited:
		d, known := r.details[c.ID]
		if !known {
			return r.opts.Now().Add(r.opts.BackoffMin)
		}
		if !d.FinishedAt.Equal(u.ended) {
			r.ended(u, d)
		}
		restart, runs = true, restarts(w.spec, d)
		if !runs && !refresh {
			return time.Time{}
		}
	case c.State != engine.StateCreated && !refresh:
		r.outdate()
		return r.opts.Now().Add(r.opts.BackoffMin) // paused, or on the way to another state
	}
	if now := r.opts.Now(); now.Before(u.nextTry) {
		return u.nextTry
	}
	if found && len(blockers) > 0 && !refresh {
		return time.Time{} // looked at again when they are gone
	}
	r.converge(ctx, u, job{
		fresh:  c.State == engine.StateCreated,
		amid:   found && c.State == engine.StateCreated && r.details[c.ID].PID != 0,
		clear:  !u.leftover.IsZero() && r.opts.Now().Sub(u.leftover) >= r.opts.LeftoverAge,
		wanted: w, revision: g.Revision, have: c, found: found, refresh: refresh,
		start: runs && len(blockers) == 0 && c.State != engine.StateRunning, restart: restart,
	})
	return time.Time{}
}

// restarts tells whether a container that ended is to run again.
func restarts(s command.Service, d engine.Details) bool {
	switch restartOf(s) {
	case command.RestartNo:
		return false
	case command.RestartOnFailure:
		return d.ExitCode != 0
	}
	return true
}

// ended counts the end of a container, once.
func (r *Reconciler) ended(u *unit, d engine.Details) {
	u.ended = d.FinishedAt
	if d.FinishedAt.Sub(d.StartedAt) >= r.opts.BackoffReset {
		u.forget()
	}
	u.failed(&r.opts, r.opts.Now(), exitText(d))
}

package reconcile

import (
	"context"
	"errors"
	"time"

	"github.com/harmony-fleet/fleet/internal/engine"
)

// check is what is remembered of the health checks of a container.
type check struct {
	running bool
	ended   time.Time // the last one; zero: none by this run of the agent
}

// checkHealth begins the health checks that are due, and says when the next one
// is. What comes out of one is counted by the engine, and seen in its details.
func (r *Reconciler) checkHealth(ctx context.Context) time.Duration {
	next := time.Duration(1<<63 - 1)
	if !r.opts.CheckHealth {
		return next
	}
	now := r.opts.Now()
	checks := map[string]*check{}
	for _, c := range r.seen {
		d := r.details[c.ID]
		if c.State != engine.StateRunning || d.HealthInterval == 0 {
			continue
		}
		last := r.checks[c.ID]
		if last == nil {
			last = &check{}
		}
		checks[c.ID] = last
		from := d.StartedAt
		if last.ended.After(from) {
			from = last.ended
		}
		switch due := from.Add(d.HealthInterval); {
		case last.running:
		case now.Before(due):
			next = min(next, due.Sub(now))
		default:
			last.running = true
			r.jobs.Go(func() { r.done <- result{checked: c.ID, err: r.askHealth(ctx, d)} })
		}
	}
	r.checks = checks
	return next
}

func (r *Reconciler) askHealth(ctx context.Context, d engine.Details) error {
	release, err := acquire(ctx, r.slots.checks)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, d.HealthTimeout+callTimeout)
	defer cancel()
	return r.opts.Engine.CheckHealth(ctx, d.ID)
}

// takeCheck notes that a health check has ended.
func (r *Reconciler) takeCheck(res result) {
	if c := r.checks[res.checked]; c != nil {
		c.running, c.ended = false, r.opts.Now()
	}
	delete(r.details, res.checked) // to be asked for its health
	switch {
	case errors.Is(res.err, errors.ErrUnsupported):
		r.opts.CheckHealth = false
		r.log.Debug("the container engine checks the health of containers itself")
	case res.err != nil:
		r.log.Debug("a health check could not be made", "error", res.err)
	}
}

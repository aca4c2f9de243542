package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// Bounds of one call of the engine. A stop may take the container's own grace
// longer.
const (
	callTimeout = 2 * time.Minute
	stopTimeout = time.Minute
	// maxStopGrace is that of a container whose own is not known: the most that a
	// service can have.
	maxStopGrace = 24 * time.Hour
)

// slots bound how much is asked of the engine at once: devices are small.
type slots struct{ pulls, steps, removals, checks chan struct{} }

func newSlots() slots {
	return slots{pulls: make(chan struct{}, 2), steps: make(chan struct{}, 4), removals: make(chan struct{}, 16), checks: make(chan struct{}, 4)}
}

func acquire(ctx context.Context, slot chan struct{}) (release func(), err error) {
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// progress is what a step is doing, told while it does.
type progress struct {
	mu    sync.Mutex
	phase command.Phase
	text  string
	told  time.Time
}

func (p *progress) set(phase command.Phase, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.text = phase, text
}

func (p *progress) get() (command.Phase, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.phase, p.text
}

// progressInterval is the least time between two reports of a pull.
const progressInterval = 2 * time.Second

// pull notes how far a pull is, and tells whether it is time to report that.
func (p *progress) pull(done engine.Progress) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.told) < progressInterval {
		return false
	}
	p.told, p.phase = now, command.PhasePulling
	p.text = cut(command.Printable(done.Text), 128)
	if done.Size > 0 {
		p.text = fmt.Sprintf("%.1f of %.1f MB", float64(done.Done)/1e6, float64(done.Size)/1e6)
	}
	return true
}

// job is what a step is to do.
type job struct {
	wanted
	revision uint64
	have     engine.Container // if found
	found    bool
	refresh  bool // pull, and replace the container if the image is another one
	start    bool // nothing is in the way
	restart  bool // it ran before
	fresh    bool // it never ran
	amid     bool // but a start of it has begun
	clear    bool // what may be a leftover has been in the way for long enough
}

// result is how a step ended.
type result struct {
	unit      *unit
	job       job
	removed   string // of a removal: the container; nothing else is set then
	checked   string // of a health check: the container; else only err is set then
	err       error
	wantImage string // refreshed
	started   bool
}

// converge begins a step for the unit.
func (r *Reconciler) converge(ctx context.Context, u *unit, j job) {
	ctx, cancel := context.WithCancel(ctx)
	s := &step{hash: j.hash, cancel: cancel}
	s.phase.set(command.PhaseStarting, "")
	u.step = s
	r.jobs.Go(func() {
		defer cancel()
		res := result{unit: u, job: j}
		res.err = r.work(ctx, s, &res)
		r.done <- res
	})
}

// work makes a service's container, as far as that can be done in one go.
func (r *Reconciler) work(ctx context.Context, s *step, res *result) error {
	j := res.job
	var pull error
	if j.refresh || !j.found {
		image, err := r.image(ctx, s, j)
		switch {
		case err != nil && (!j.found || ctx.Err() != nil):
			return err
		case err != nil:
			pull = err // without the registry, what is there goes on
		case j.spec.Pull == command.PullAlways:
			res.wantImage = image.ID
			if j.found && j.have.ImageID != image.ID {
				j.found, j.start = false, false // what is in the way now is seen by the next pass
			}
		}
	}
	release, err := acquire(ctx, r.slots.steps)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id := j.have.ID
	if !j.found {
		spec := specOf(r.opts.Device, j.key, j.spec, j.hash, res.wantImage)
		if id, err = r.create(ctx, spec, j.clear); err != nil {
			return err
		}
		r.log.Info("container created", "service", j.key.String(), "container", spec.Name, "image", j.spec.Image, "revision", j.revision)
	}
	if !j.start {
		return pull
	}
	s.phase.set(command.PhaseStarting, "")
	if err := r.opts.Engine.Start(ctx, id); err != nil {
		if !j.found || !j.fresh || ctx.Err() != nil {
			return err
		}
		return r.afterStart(ctx, j, err)
	}
	res.started = true
	r.log.Info("container started", "service", j.key.String(), "id", id[:min(12, len(id))], "again", j.restart)
	return pull
}

// afterStart does what it can for a container that never ran, and could not be
// started because of err: Podman may have been killed amid a start.
func (r *Reconciler) afterStart(ctx context.Context, j job, err error) error {
	id := j.have.ID
	switch {
	case j.amid:
		// The program may run already: Podman never gets to know that, and cannot start
		// it any more.
		return errors.Join(err, r.opts.Engine.Remove(ctx, id))
	case !j.clear:
		return leftover{err}
	}
	killed, fault := r.opts.Engine.KillMonitor(ctx, id)
	if killed {
		r.log.Warn("what an interrupted start left was ended", "container", j.have.Name)
	}
	return errors.Join(err, fault)
}

// leftover is an error that what an interrupted create or start left may have
// caused. Of a create: the name is taken by what the engine does not know, since
// one amid which it was killed had given the name away, and is in no list. Of a
// start: the monitor has the port. It is also what is seen of one that goes on,
// such as one whose answer nobody waited for.
type leftover struct{ error }

func (l leftover) Unwrap() error { return l.error }

// create makes a container. A leftover of its name is removed first where clear
// says that it is old enough.
func (r *Reconciler) create(ctx context.Context, spec engine.Spec, clear bool) (id string, err error) {
	id, err = r.opts.Engine.Create(ctx, spec)
	if !errors.Is(err, engine.ErrConflict) {
		return id, err
	}
	_, look := r.opts.Engine.Inspect(ctx, spec.Name)
	switch {
	case !errors.Is(look, engine.ErrNotFound):
		return "", fmt.Errorf("%w; if the agent did not make that container, remove or rename it", err)
	case !clear:
		return "", leftover{fmt.Errorf("%w; the engine does not know that container: unless it appears soon, it is removed", err)}
	}
	if err := r.opts.Engine.Remove(ctx, spec.Name); err != nil {
		return "", leftover{err}
	}
	r.log.Warn("what an interrupted create left was removed", "container", spec.Name)
	return r.opts.Engine.Create(ctx, spec)
}

// image finds the image of a service, or pulls it.
func (r *Reconciler) image(ctx context.Context, s *step, j job) (engine.Image, error) {
	if j.spec.Pull != command.PullAlways {
		image, err := r.findImage(ctx, j.spec.Image)
		if err == nil || !errors.Is(err, engine.ErrNotFound) {
			return image, err
		}
		if j.spec.Pull == command.PullNever {
			return image, fmt.Errorf("%w, and is never pulled: bring it to the device, or change pull", err)
		}
	}
	s.phase.set(command.PhasePulling, "waiting")
	poke(r.tell)
	release, err := acquire(ctx, r.slots.pulls)
	if err != nil {
		return engine.Image{}, err
	}
	defer release()
	r.log.Info("pulling image", "service", j.key.String(), "image", j.spec.Image)
	err = r.opts.Engine.Pull(ctx, j.spec.Image, func(p engine.Progress) {
		if s.phase.pull(p) {
			poke(r.tell)
		}
	})
	if err != nil {
		return engine.Image{}, err
	}
	s.phase.set(command.PhaseStarting, "")
	return r.findImage(ctx, j.spec.Image)
}

func (r *Reconciler) findImage(ctx context.Context, ref string) (engine.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.opts.Engine.Image(ctx, ref)
}

// remove begins to stop and remove a container, unless that is under way.
func (r *Reconciler) remove(ctx context.Context, c engine.Container) {
	if r.removals[c.ID] != nil {
		return
	}
	grace := r.details[c.ID].StopGrace
	if grace == 0 {
		grace = maxStopGrace
	}
	ctx, cancel := context.WithCancel(ctx)
	r.removals[c.ID] = cancel
	r.jobs.Go(func() {
		defer cancel()
		err := r.end(ctx, c, grace)
		if err != nil && ctx.Err() == nil {
			r.log.Error("a container cannot be removed; trying again", "container", c.Name, "error", err)
			sleep(ctx, r.opts.BackoffMin)
		}
		r.done <- result{removed: c.ID, err: err}
	})
}

func (r *Reconciler) end(ctx context.Context, c engine.Container, grace time.Duration) error {
	release, err := acquire(ctx, r.slots.removals)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, stopTimeout+grace)
	defer cancel()
	if rank(c) == 2 {
		if err := r.opts.Engine.Stop(ctx, c.ID); err != nil && !errors.Is(err, engine.ErrNotFound) {
			return err
		}
	}
	if err := r.opts.Engine.Remove(ctx, c.ID); err != nil {
		return err
	}
	r.log.Info("container removed", "container", c.Name)
	return nil
}

// take notes how a step ended.
func (r *Reconciler) take(res result) {
	r.outdate()
	if res.checked != "" {
		r.takeCheck(res)
		return
	}
	if res.removed != "" {
		delete(r.removals, res.removed)
		return
	}
	// It may have been started and have ended since it was inspected.
	delete(r.details, res.job.have.ID)
	u := res.unit
	u.step = nil
	if u.hash != res.job.hash {
		return // it is about another spec by now
	}
	if res.started && res.job.restart {
		u.restarts++
	}
	if !errors.As(res.err, new(leftover)) {
		u.leftover = time.Time{}
	} else if u.leftover.IsZero() {
		u.leftover = r.opts.Now()
	}
	switch {
	case errors.Is(res.err, context.Canceled):
	case res.err != nil:
		u.failed(&r.opts, r.opts.Now(), res.err.Error())
		r.log.Warn("a service is not as desired; trying again", "service", u.key.String(),
			"in", u.nextTry.Sub(r.opts.Now()).Round(time.Millisecond), "failures", u.failures, "error", res.err)
	default:
		if res.job.refresh || !res.job.found {
			u.checked = res.job.revision
		}
		if res.wantImage != "" {
			u.wantImage = res.wantImage
		}
		if !res.started || !res.job.restart { // that it starts again does not mean that it stays
			u.forget()
		}
	}
}

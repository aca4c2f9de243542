// Package reconcile keeps the containers of one device as they are desired.
//
//	r := reconcile.New(reconcile.Options{Device: "vm-device-00", Engine: e, Report: report})
//	r.Set(reconcile.Desired{Revision: 7, State: doc}) // any time, from anywhere
//	err := r.Run(ctx)                                 // until ctx ends
//
// It is level-based: each pass looks at the containers that carry the device's
// labels, compares them with what is desired by a hash of the spec in a label,
// and starts the next step for whatever differs (plan.go). Steps run beside the
// passes, one at a time for each service, so that a slow pull or stop holds up
// nobody else (job.go); when one ends, a pass looks again. Nothing that matters
// is kept in memory: the names of containers follow from their specs, so an agent
// that is killed between any two steps neither makes a container twice nor
// forgets one.
//
// Passes are made after a change of the desired state, an event of the engine, or
// the end of a step, and otherwise every [Options].Resync. A pass lists the
// containers, unless nothing can have changed: while the engine tells of events,
// one without a cause goes by the last list, for [Options].Relist at most.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// Engine is the container engine, as far as a reconciler needs it; package
// engine documents the methods.
type Engine interface {
	Containers(ctx context.Context, device string) ([]engine.Container, error)
	Inspect(ctx context.Context, id string) (engine.Details, error)
	Create(ctx context.Context, s engine.Spec) (id string, err error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Image(ctx context.Context, ref string) (engine.Image, error)
	Pull(ctx context.Context, ref string, progress func(engine.Progress)) error
	Watch(ctx context.Context, device string, changed func(id string)) error
	CheckHealth(ctx context.Context, id string) error
	KillMonitor(ctx context.Context, id string) (killed bool, err error)
}

// Options configure a reconciler. Device and Engine are needed; every other
// field's zero value is its default. Nothing may change after New.
type Options struct {
	Device string
	Engine Engine
	// Allow refuses a service that the device's own policy does not want; its
	// deployment is rejected then. nil: all are allowed.
	Allow func(command.Service) error
	// Report is called, from Run's goroutine, whenever the report differs from the
	// last one. It must return soon. nil: nobody is told.
	Report func(Report)

	// Resync is the time between passes that have no cause, before a jitter of
	// 10 %; default 30 s.
	Resync time.Duration
	// Relist is the age at which a list of the containers is made anew, whatever the
	// engine told; default 3 min.
	Relist time.Duration
	// RetryMin and RetryMax bound the waits between attempts to reach the engine;
	// default 1 s and 30 s.
	RetryMin, RetryMax time.Duration
	// BackoffMin and BackoffMax bound the waits before a step that failed, or a
	// container that ended, is tried again; default 1 s and 5 min.
	BackoffMin, BackoffMax time.Duration
	// BackoffReset is how long a container has to run for its earlier ends to be
	// forgotten; default 5 min.
	BackoffReset time.Duration

	// LeftoverAge is how long what an interrupted create or start may have left has to
	// be in the way before it is removed: one that still goes on in the engine, which
	// nobody may disturb, must have ended by then. Default 10 s.
	LeftoverAge time.Duration

	// CheckHealth has the reconciler ask the engine for each health check when it is
	// due: Podman leaves that to timers of systemd. false: the engine's own timers run.
	CheckHealth bool

	// Settled is called, from Run's goroutine, when the last of the steps that were
	// under way has ended; nil: nobody is told.
	Settled func()

	// Now is the clock of what is reported; default time.Now.
	Now func() time.Time
	// Logger gets the log; nil discards it.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	def := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	def(&o.Resync, 30*time.Second)
	def(&o.Relist, 3*time.Minute)
	def(&o.RetryMin, time.Second)
	def(&o.RetryMax, max(30*time.Second, o.RetryMin))
	def(&o.BackoffMin, time.Second)
	def(&o.BackoffMax, max(5*time.Minute, o.BackoffMin))
	def(&o.BackoffReset, 5*time.Minute)
	def(&o.LeftoverAge, 10*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Report == nil {
		o.Report = func(Report) {}
	}
}

// Desired is what a device should run, and the revision under which the broker
// stored it.
type Desired struct {
	Revision uint64
	State    command.DesiredState
}

// Report is where everything stands.
type Report struct {
	Runtime     command.RuntimeState
	Fault       string // why the engine is unavailable
	Revision    uint64 // that Deployments speaks of; 0: no desired state yet
	Deployments map[string]command.DeploymentStatus
}

// Reconciler keeps containers as they are desired. It runs once.
type Reconciler struct {
	opts Options
	log  *slog.Logger
	wake chan struct{} // of capacity 1: a pass is wanted
	tell chan struct{} // of capacity 1: a report is wanted
	done chan result   // of steps

	mu     sync.Mutex
	goal   *goal           // nil: keep what runs
	dirty  map[string]bool // containers that something happened to
	events time.Time       // since when the engine tells of them; zero: it does not
	stale  bool            // the last list may be wrong

	// What follows belongs to Run's goroutine.
	units    map[key]*unit
	removals map[string]context.CancelFunc // by container id
	checks   map[string]*check             // by container id
	details  map[string]engine.Details
	digests  map[string]string  // of images, by id
	seen     []engine.Container // in the last list
	listed   time.Time
	planned  *goal // the goal of the last pass
	fault    error // of the engine
	looked   bool  // the engine answered once
	busy     bool  // steps were under way after the last pass
	retry    time.Duration
	last     Report
	jobs     sync.WaitGroup
	slots    slots
}

// goal is a desired state that was read and checked.
type goal struct {
	Desired
	services map[string][]command.Service
	rejected map[string]*command.Error
}

// New makes a reconciler that touches nothing before Run.
func New(o Options) *Reconciler {
	o.setDefaults()
	return &Reconciler{
		opts: o, log: o.Logger, wake: make(chan struct{}, 1), tell: make(chan struct{}, 1), done: make(chan result),
		dirty: map[string]bool{}, units: map[key]*unit{}, removals: map[string]context.CancelFunc{},
		checks:  map[string]*check{},
		details: map[string]engine.Details{}, slots: newSlots(),
	}
}

// Set replaces what is desired. A state without deployments removes everything.
// Of states that follow each other quickly only the last one counts. It may be
// called at any time from any goroutine.
func (r *Reconciler) Set(d Desired) {
	g := &goal{Desired: d}
	g.services, g.rejected = d.State.Split()
	r.refuse(g)
	r.mu.Lock()
	r.goal, r.stale = g, true
	r.mu.Unlock()
	poke(r.wake)
}

// outdate has the next pass list the containers.
func (r *Reconciler) outdate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = true
}

// refuse rejects the deployments that the policy of the device does not allow.
func (r *Reconciler) refuse(g *goal) {
	if r.opts.Allow == nil {
		return
	}
	for name, services := range g.services {
		for i, s := range services {
			if err := r.opts.Allow(s); err != nil {
				g.rejected[name] = command.NewError(command.KindDenied, "deployments.%s.services[%d].%v", name, i, err)
				delete(g.services, name)
				r.log.Error("a deployment is rejected; what ran of it goes on", "deployment", name, "revision", g.Revision, "error", err)
				break
			}
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run reconciles until ctx ends; then it gives up the steps that are under way,
// and waits for that. Containers go on running.
func (r *Reconciler) Run(ctx context.Context) error {
	steps, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	defer func() {
		cancel()
		go func() { defer close(ended); r.jobs.Wait() }()
		for { // the steps hand their results to nobody any more
			select {
			case <-r.done:
			case <-ended:
				return
			}
		}
	}()
	r.jobs.Go(func() { r.watch(steps) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.tell:
			r.report()
			continue
		case res := <-r.done:
			r.take(res)
			r.drain()
		case <-r.wake:
		case <-timer.C:
		}
		next := r.pass(steps)
		if ctx.Err() != nil {
			return nil
		}
		r.report()
		r.settle()
		timer.Reset(next)
	}
}

// settle notices that nothing is under way any more.
func (r *Reconciler) settle() {
	busy := len(r.removals) > 0
	for _, u := range r.units {
		busy = busy || u.step != nil
	}
	if r.busy && !busy && r.opts.Settled != nil {
		r.opts.Settled()
	}
	r.busy = busy
}

// drain takes the other results that are there, so that one pass serves all.
func (r *Reconciler) drain() {
	for {
		select {
		case res := <-r.done:
			r.take(res)
		default:
			return
		}
	}
}

// watch pokes for each event of the engine, and when the stream of events begins
// or ends.
func (r *Reconciler) watch(ctx context.Context) {
	wait := r.opts.RetryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := r.opts.Engine.Watch(ctx, r.opts.Device, func(id string) {
			r.mu.Lock()
			r.stale = true
			if id != "" {
				r.dirty[id] = true
			} else {
				r.events = time.Now()
			}
			r.mu.Unlock()
			poke(r.wake)
		})
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.events = time.Time{}
		r.mu.Unlock()
		r.log.Debug("no events of the container engine", "error", err)
		poke(r.wake)
		// A stream that begins says little: its connection may fail a moment later.
		if time.Since(began) > r.opts.RetryMax {
			wait = r.opts.RetryMin
		}
		sleep(ctx, jitter(wait, 0.5))
		wait = min(2*wait, r.opts.RetryMax)
	}
}

const (
	// listTimeout bounds one look at the engine.
	listTimeout = 30 * time.Second
	// eventsDelay is how long an engine that has agreed to tell of events may take to
	// begin: what a list showed before is not trusted.
	eventsDelay = time.Second
)

// pass looks at everything and starts the steps that can be made now. It returns
// when to look again without a cause.
func (r *Reconciler) pass(ctx context.Context) time.Duration {
	r.mu.Lock()
	g, dirty := r.goal, r.dirty
	told := !r.events.IsZero() && r.listed.Sub(r.events) >= eventsDelay
	list := r.stale || !told || time.Since(r.listed) >= r.opts.Relist
	if list {
		r.dirty, r.stale = map[string]bool{}, false
	}
	r.mu.Unlock()
	if list {
		began := time.Now()
		if err := r.look(ctx, dirty); err != nil {
			if ctx.Err() != nil {
				return 0
			}
			r.mu.Lock()
			maps.Copy(r.dirty, dirty) // the next look still has to ask about them
			r.stale = true
			r.mu.Unlock()
			r.planned = g
			return r.unavailable(err)
		}
		r.listed = began
	}
	if r.fault != nil || !r.looked {
		r.log.Info("the container engine is ready")
		r.fault, r.looked, r.retry = nil, true, 0
	}
	next := jitter(r.opts.Resync, 0.1)
	if g == nil {
		return next
	}
	r.planned = g
	return min(next, r.plan(ctx, g))
}

// look lists the containers, and inspects those of which not all is known.
func (r *Reconciler) look(ctx context.Context, dirty map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := r.list(ctx)
	if err != nil {
		return err
	}
	details := make(map[string]engine.Details, len(list))
	for i, c := range list {
		d, known := r.details[c.ID]
		if !known || d.State != c.State || dirty[c.ID] {
			d, err = r.opts.Engine.Inspect(ctx, c.ID)
			switch {
			case errors.Is(err, engine.ErrUnavailable), ctx.Err() != nil:
				return err
			case err != nil: // for example removed since the list was made
				r.outdate()
				r.log.Debug("a container cannot be inspected", "container", c.Name, "error", err)
				continue
			}
			list[i].State = d.State // the later one
		}
		details[c.ID] = d
	}
	r.seen, r.details = list, details
	return r.lookImages(ctx)
}

// maxBroken is how many removals one look finishes: each container can be one.
const maxBroken = 1024

// list lists the containers. It finishes the removals amid which the engine was
// killed, since there is no list before.
func (r *Reconciler) list(ctx context.Context) ([]engine.Container, error) {
	for range maxBroken {
		list, err := r.opts.Engine.Containers(ctx, r.opts.Device)
		var broken *engine.Broken
		if !errors.As(err, &broken) {
			return list, err
		}
		if err := r.opts.Engine.Remove(ctx, broken.ID); err != nil {
			return nil, err
		}
		r.log.Warn("what an interrupted removal left was removed", "id", broken.ID[:12])
	}
	return nil, fmt.Errorf("list containers: more than %d are broken", maxBroken)
}

// lookImages learns the digests of the images in use.
func (r *Reconciler) lookImages(ctx context.Context) error {
	digests := make(map[string]string, len(r.digests))
	for _, c := range r.seen {
		if _, ok := digests[c.ImageID]; ok || c.ImageID == "" {
			continue
		}
		digest, known := r.digests[c.ImageID]
		if !known {
			image, err := r.opts.Engine.Image(ctx, c.ImageID)
			if errors.Is(err, engine.ErrUnavailable) {
				return err
			}
			digest = image.Digest // empty where somebody removed the image
		}
		digests[c.ImageID] = digest
	}
	r.digests = digests
	return nil
}

func (r *Reconciler) unavailable(err error) time.Duration {
	if r.fault == nil {
		r.log.Warn("the container engine does not answer; trying again until it does", "error", err)
		r.retry = r.opts.RetryMin
	}
	r.fault = err
	wait := jitter(r.retry, 0.5)
	r.retry = min(2*r.retry, r.opts.RetryMax)
	return wait
}

// report tells where everything stands, if that is news.
func (r *Reconciler) report() {
	now := r.status()
	if !reflect.DeepEqual(now, r.last) {
		r.last = now
		r.opts.Report(now)
	}
}

func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

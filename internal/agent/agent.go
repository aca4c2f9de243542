package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/agent/spool"
	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// Agent is one device's agent. It runs once.
type Agent struct {
	opts     Options
	log      *slog.Logger
	bootID   string
	instance string
	engine   Engine

	clock  brokertime.Clock
	state  state
	server server
	audit  auditor
	watch  watcher

	ran     atomic.Bool
	ready   chan struct{}
	began   time.Time                 // monotonic; set by Run
	started atomic.Pointer[time.Time] // the same moment by broker time, once it is known

	current  atomic.Pointer[link]
	events   chan event
	notices  chan *nats.Msg
	ended    chan struct{}  // closed when the loop is over
	tasks    sync.WaitGroup // dials, retiring connections
	connects atomic.Uint64
	dropped  atomic.Uint64 // commands that retired connections dropped
}

// event is something that happened to a connection.
type event struct {
	kind     eventKind
	link     *link
	identity brokertime.Identity
	renewal  bool   // linkOpened: it is to replace another one
	other    string // otherAgent: its instance
	err      error
}

type eventKind int

const (
	linkOpened eventKind = iota
	dialFailed
	linkReconnected
	linkClosed
	clockSynced
	clockNotSynced
	otherAgent
)

// New checks the options; nothing is touched before Run.
func New(o Options) (*Agent, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a := &Agent{
		opts: o, bootID: kernelBootID(), instance: strings.ToLower(rand.Text()), engine: o.Engine,
		log:   o.Logger.With("device_id", o.DeviceID),
		ready: make(chan struct{}), ended: make(chan struct{}),
		events: make(chan event, 8), notices: make(chan *nats.Msg, 32),
	}
	a.state = state{now: a.now, changed: make(chan struct{}, 1), runtime: command.RuntimeDisabled}
	if o.RuntimeEnabled {
		a.state.runtime = command.RuntimeUnavailable
		if a.engine == nil {
			e, err := engine.Open(o.RuntimeSocket)
			if err != nil {
				return nil, fmt.Errorf("agent: runtime socket: %w", err)
			}
			a.engine = e
		}
	}
	a.audit = auditor{
		device: o.DeviceID, bootID: a.bootID, instance: a.instance,
		state: &a.state, log: a.log, delay: o.AuditDelay, link: a.current.Load,
	}
	a.audit.init()
	a.watch = watcher{device: o.DeviceID, state: &a.state, log: a.log, link: a.current.Load, apply: a.state.setDesired}
	a.watch.init()
	a.server = server{
		device: o.DeviceID, instance: a.instance, protocol: o.Protocol,
		clock: &a.clock, now: a.now, log: a.log,
		guard: guard{account: o.OpsAccount}, audit: &a.audit,
		table:    table{maxLasting: o.MaxRequests, maxPassing: defaultPassing, maxBytes: defaultMaxBytes},
		handlers: map[command.Verb]Handler{command.VerbPing: pingHandler{a}},
		sessions: session.New(session.Options{
			Device: o.DeviceID, Conn: a.conn, MaxSessions: o.Policy.MaxSessions, MaxPerCaller: o.Policy.MaxSessionsPerCaller,
		}),
		slots: make(chan struct{}, o.MaxConcurrent),
		clash: a.clashed,
	}
	a.serveWorkloads()
	for verb, h := range o.Handlers {
		a.server.handlers[verb] = h
	}
	return a, nil
}

// Instance is the random name of this run.
func (a *Agent) Instance() string { return a.instance }

// Ready is closed when the agent takes commands for the first time.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// conn is the connection in use; nil: there is none.
func (a *Agent) conn() *nats.Conn {
	if l := a.current.Load(); l != nil {
		return l.nc
	}
	return nil
}

// now is broker time or, until it is known, the device's.
func (a *Agent) now() time.Time {
	if now, ok := a.clock.Latest(); ok {
		return now.UTC()
	}
	return a.opts.Now().UTC().Round(0)
}

func (a *Agent) uptimeSeconds() uint64 { return uint64(time.Since(a.began).Seconds()) }

func (a *Agent) startedAt() time.Time {
	if t := a.started.Load(); t != nil {
		return *t
	}
	return a.opts.Now().UTC().Round(0).Add(-time.Since(a.began))
}

// noteStart fixes the start of this run by broker time, once.
func (a *Agent) noteStart() {
	if now, ok := a.clock.Latest(); ok && a.started.Load() == nil {
		t := now.UTC().Add(-time.Since(a.began))
		a.started.CompareAndSwap(nil, &t)
	}
}

// clashed notes another agent with this device id.
func (a *Agent) clashed(instance string) {
	a.send(event{kind: otherAgent, other: instance})
}

// send hands an event to the loop.
func (a *Agent) send(e event) {
	select {
	case a.events <- e:
	case <-a.ended:
	}
}

// Run runs the agent until ctx ends, then answers what was accepted (within
// DrainTimeout) and returns nil. It fails at once where the state directory
// cannot be used; a broker that is down is no failure.
func (a *Agent) Run(ctx context.Context) error {
	if a.ran.Swap(true) {
		return errors.New("agent: Run was called before; make a new agent")
	}
	a.began = time.Now()
	dir, err := openStateDir(a.opts.StateDir)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer dir.close()
	if err := a.openState(dir); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer func() {
		if err := a.audit.spool.Close(); err != nil {
			a.log.Error("audit spool", "error", err)
		}
	}()
	a.log.Info("agent starts", "version", a.opts.Version, "instance", a.instance, "state_dir", a.opts.StateDir, "runtime_enabled", a.opts.RuntimeEnabled)

	a.audit.task.start(ctx)
	a.watch.task.start(ctx)
	if a.opts.RuntimeEnabled {
		a.tasks.Go(func() { a.watchEngine(ctx) })
	}
	newLoop(a).run(ctx)
	close(a.ended)
	a.stop(ctx)
	return nil
}

// openState reads what earlier runs left.
func (a *Agent) openState(dir *stateDir) error {
	earlier, damage, err := dir.remember(a.opts.DeviceID, a.instance)
	if err != nil {
		return err
	}
	if damage != "" {
		a.damaged("Instances", damage)
	}
	a.server.earlier = func(instance string) bool { return slices.Contains(earlier, instance) }
	sp, torn, err := spool.Open(spool.Options{Path: dir.file(auditFile), DeviceID: a.opts.DeviceID, MaxBytes: a.opts.AuditMaxBytes})
	if err != nil {
		return err
	}
	a.audit.spool = sp
	if torn != nil {
		a.damaged("AuditSpool", torn.String())
	}
	return nil
}

func (a *Agent) damaged(reason, message string) {
	a.log.Error("a file of the state directory was damaged", "what", message)
	a.state.setCondition(command.ConditionDamagedFile, true, reason, message)
}

// stop ends the intake, answers what was accepted, and makes one attempt to
// bring the last audit records to the broker.
func (a *Agent) stop(ctx context.Context) {
	a.server.sessions.Close()
	l := a.current.Load()
	if l != nil {
		l.drain(ctx, a.opts.DrainTimeout, a.opts.DrainTimeout)
	}
	a.watch.task.stop()
	a.audit.task.stop()
	if l != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
		if err := a.audit.flush(last); err != nil {
			a.log.Warn("audit records remain for the next run", "pending", a.audit.spool.Pending(), "error", err)
		}
		cancel()
		l.close()
	}
	a.tasks.Wait()
	a.log.Info("agent stopped")
}

// lastFlush bounds the attempt to publish audit records at a stop.
const lastFlush = 2 * time.Second

// watchEngine keeps trying to reach the container engine, and notices when it
// goes away.
func (a *Agent) watchEngine(ctx context.Context) {
	if c, ok := a.engine.(interface{ Close() error }); ok && a.opts.Engine == nil {
		defer c.Close()
	}
	retry := backoff{least: a.opts.RetryMin, most: a.opts.RetryMax}
	first := true
	for {
		ping, cancel := context.WithTimeout(ctx, engineTimeout)
		err := a.engine.Ping(ping)
		cancel()
		if ctx.Err() != nil {
			return
		}
		var wait time.Duration
		if err == nil {
			if a.state.setRuntime(command.RuntimeReady) {
				a.log.Info("the container engine is ready")
			}
			retry.reset()
			wait = jitter(a.opts.RetryMax, 0.1)
		} else {
			if a.state.setRuntime(command.RuntimeUnavailable) || first {
				a.log.Warn("the container engine does not answer; trying again until it does", "error", err)
			}
			wait = retry.wait()
		}
		first = false
		if !sleep(ctx, wait) {
			return
		}
	}
}

const engineTimeout = 5 * time.Second

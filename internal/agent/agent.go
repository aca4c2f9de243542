package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/journal"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/agent/spool"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/reconcile"
)

// Agent is one device's agent. It runs once.
type Agent struct {
	opts     Options
	log      *slog.Logger
	bootID   string
	instance string

	clock  brokertime.Clock
	state  state
	server server
	audit  auditor
	watch  watcher
	// runtime keeps containers as desired; nil where RuntimeEnabled is false.
	runtime     *reconcile.Reconciler
	engine      *engine.Engine // of logs, exec and shell; nil: there is none
	closeEngine func() error   // nil: the engine is not the agent's
	workloads   *workload.Server

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
		opts: o, bootID: kernelBootID(), instance: strings.ToLower(rand.Text()),
		log:   o.Logger.With("device_id", o.DeviceID),
		ready: make(chan struct{}), ended: make(chan struct{}),
		events: make(chan event, 8), notices: make(chan *nats.Msg, 32),
	}
	a.state = state{now: a.now, changed: make(chan struct{}, 1), runtime: command.RuntimeDisabled}
	if o.RuntimeEnabled {
		if err := a.openRuntime(); err != nil {
			return nil, fmt.Errorf("agent: runtime socket: %w", err)
		}
	}
	a.audit = auditor{
		device: o.DeviceID, bootID: a.bootID, instance: a.instance,
		state: &a.state, log: a.log, delay: o.AuditDelay, link: a.current.Load,
	}
	a.audit.init()
	a.watch = watcher{device: o.DeviceID, state: &a.state, log: a.log, link: a.current.Load, apply: a.desire}
	a.watch.init()
	a.server = server{
		device: o.DeviceID, instance: a.instance, protocol: o.Protocol,
		clock: &a.clock, now: a.time, log: a.log,
		guard: guard{account: o.OpsAccount}, audit: &a.audit,
		table: table{
			maxLasting: o.MaxRequests, maxPassing: defaultPassing, maxBytes: defaultMaxBytes,
			most: max(1, o.MaxRequests/callerShares), mostBytes: defaultMaxBytes / callerShares,
		},
		jobs: jobResults{device: o.DeviceID, conn: a.conn, log: a.log},
		sessions: session.New(session.Options{
			Device: o.DeviceID, Conn: a.conn, Log: a.log, MaxSessions: o.Policy.MaxSessions, MaxPerCaller: o.Policy.MaxSessionsPerCaller,
		}),
		handlers:  map[command.Verb]Handler{command.VerbPing: pingHandler{a}},
		slots:     slots{most: o.MaxConcurrent, mostEach: max(1, o.MaxConcurrent/2)},
		clash:     a.clashed,
		strangers: sample{of: "from senders that cannot be named"}, pressing: sample{of: "of callers that fill the queue"}, maxQueued: o.MaxQueued,
	}
	a.server.handlers[command.VerbResult] = resultHandler{&a.server.table}
	a.serveWorkloads()
	for verb, h := range o.Handlers {
		a.server.handlers[verb] = h
	}
	return a, nil
}

// openRuntime makes the reconciler and, unless the options bring one, the client
// of the engine.
func (a *Agent) openRuntime() error {
	o := a.opts
	if o.Engine == nil {
		e, err := engine.Open(o.RuntimeSocket)
		if err != nil {
			return err
		}
		o.Engine, a.closeEngine = e, e.Close
	}
	a.engine, _ = o.Engine.(*engine.Engine) // nil for a test's
	a.state.runtime = command.RuntimeUnavailable
	r := o.Reconcile
	r.Device, r.Engine, r.Report, r.Logger = o.DeviceID, o.Engine, a.state.setReport, a.log
	r.Allow = o.Policy.Service
	r.RetryMin, r.RetryMax = o.RetryMin, o.RetryMax
	r.CheckHealth = !systemdRuns()
	// Much was allocated meanwhile, and as a rule nothing will be for a long time.
	r.Settled = debug.FreeOSMemory
	a.runtime = reconcile.New(r)
	return nil
}

// systemdRuns is sd_booted(3): without it Podman has no timers for health checks.
func systemdRuns() bool {
	_, err := os.Lstat("/run/systemd/system")
	return err == nil
}

// desire takes a new desired state.
func (a *Agent) desire(d reconcile.Desired) {
	a.state.setDesired(d)
	if a.runtime != nil {
		a.runtime.Set(d)
	}
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
	now, _ := a.time()
	return now
}

// time is now, and tells whether it is broker time.
func (a *Agent) time() (now time.Time, broker bool) {
	if now, ok := a.clock.Latest(); ok {
		return now.UTC(), true
	}
	return a.opts.Now().UTC().Round(0), false
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
		if err := errors.Join(a.audit.spool.Close(), a.server.table.journal.Close()); err != nil {
			a.log.Error("a file of the state directory could not be closed", "error", err)
		}
	}()
	a.log.Info("agent starts", "version", a.opts.Version, "instance", a.instance, "state_dir", a.opts.StateDir, "runtime_enabled", a.opts.RuntimeEnabled)

	a.audit.task.start(ctx)
	a.watch.task.start(ctx)
	if a.runtime != nil {
		a.tasks.Go(func() { a.runRuntime(ctx) })
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
	j, started, torn, err := journal.Open(journal.Options{Path: dir.file(journalFile), DeviceID: a.opts.DeviceID})
	if err != nil {
		return errors.Join(err, sp.Close())
	}
	a.server.table.journal = j
	a.settle(started)
	a.server.table.restore(started)
	if torn != nil {
		a.damaged("Journal", torn.String())
	}
	if err := a.openDesired(dir); err != nil {
		return errors.Join(err, j.Close(), sp.Close())
	}
	return nil
}

// openDesired goes on from the desired state of the last run.
func (a *Agent) openDesired(dir *stateDir) error {
	kept, found, damage, err := dir.loadDesired(a.opts.DeviceID)
	if err != nil {
		return err
	}
	if damage != "" {
		a.damaged("DesiredState", damage)
	}
	a.watch.keep = dir.keepDesired
	if found {
		a.watch.restore(kept)
	}
	return nil
}

// runRuntime reconciles until ctx ends.
func (a *Agent) runRuntime(ctx context.Context) {
	if err := a.runtime.Run(ctx); err != nil {
		a.log.Error("containers are not kept as desired any more", "error", err)
	}
	if a.closeEngine != nil {
		_ = a.closeEngine() // idle connections
	}
}

func (a *Agent) damaged(reason, message string) {
	a.log.Error("a file of the state directory was damaged", "what", message)
	a.state.setCondition(command.ConditionDamagedFile, true, reason, message)
}

// stop ends the intake, answers what was accepted, and makes one attempt to
// bring the last audit records to the broker.
func (a *Agent) stop(ctx context.Context) {
	a.endSessions()
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

// endSessions ends every session, and waits for that as long as for commands.
func (a *Agent) endSessions() {
	ended := make(chan struct{})
	go func() { // ends with the sessions
		defer close(ended)
		a.server.sessions.Close()
	}()
	limit := time.NewTimer(a.opts.DrainTimeout)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
		a.log.Error("a session does not end; it is left behind", "sessions", a.server.sessions.Len())
	}
}

// lastFlush bounds the attempt to publish audit records at a stop.
const lastFlush = 2 * time.Second

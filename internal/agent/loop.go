package agent

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/brokertime"
)

// loop is the agent's one goroutine of its own. Its fields are used by it alone.
type loop struct {
	*Agent
	report  reporter
	dialing bool
	// dialed brings the links that were opened. It has no buffer, so that none is
	// left in it when the loop ends.
	dialed chan event
	retry  backoff // between dials
	heard  uint64  // the last of our heartbeats that the broker stored; 0: none yet
	looks  int     // at the desired state, still to come after heartbeats were lost

	heartbeat, renew, resync, clash *time.Timer
}

// Shares of a connection's life after which it is renewed: drawn anew each time,
// so that agents that connected together do not renew together.
const (
	renewFrom = 0.66
	renewTo   = 0.75
)

const (
	clashIntervals  = 3               // heartbeats that another agent may miss before it counts as gone
	syncRetry       = 5 * time.Second // after the broker did not tell its time
	overlapMemory   = 10 * time.Second
	heartbeatJitter = 0.1
	// Reads are answered by the nearest copy of a stream, which may take a while
	// after a cut until it has what the others wrote meanwhile: so many looks at the
	// desired state, a heartbeat apart.
	looksAfterCut = 4
	resyncJitter  = 0.2
)

func newLoop(a *Agent) *loop {
	never := func() *time.Timer {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return &loop{
		Agent: a, report: reporter{agent: a}, dialed: make(chan event), retry: backoff{least: a.opts.RetryMin, most: a.opts.RetryMax},
		heartbeat: never(), renew: never(), resync: never(), clash: never(),
	}
}

// run returns when ctx has ended.
func (p *loop) run(ctx context.Context) {
	defer func() {
		for _, t := range []*time.Timer{p.heartbeat, p.renew, p.resync, p.clash} {
			t.Stop()
		}
	}()
	p.dialAfter(ctx, 0)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-p.events:
			p.take(ctx, e)
		case e := <-p.dialed:
			p.take(ctx, e)
		case msg := <-p.notices:
			p.notice(msg)
		case <-p.state.changed:
			if l := p.current.Load(); l != nil {
				p.report.status(l, false)
			}
		case <-p.heartbeat.C:
			p.beat()
		case <-p.renew.C:
			p.dialAfter(ctx, 0)
		case <-p.resync.C:
			p.sync(ctx)
			p.watch.task.poke()
			if l := p.current.Load(); l != nil && p.report.old() {
				p.report.status(l, true)
			}
		case <-p.clash.C:
			if p.state.setCondition(command.ConditionIDClash, false, "", "") {
				p.log.Info("the other agent with this device id is gone")
			}
		}
	}
}

func (p *loop) take(ctx context.Context, e event) {
	switch e.kind {
	case linkOpened:
		p.dialing = false
		p.retry.reset()
		p.adopt(ctx, e)
	case dialFailed:
		p.dialing = false
		wait := p.retry.wait()
		p.log.Warn("no connection to the broker; trying again", "in", wait.Round(time.Millisecond), "renewal", p.current.Load() != nil, "error", e.err)
		p.dialAfter(ctx, wait)
	case linkReconnected:
		if e.link == p.current.Load() {
			p.connects.Add(1)
			p.connected(e.link)
			p.sync(ctx) // the broker gave the connection another end
		}
	case linkClosed:
		if p.current.CompareAndSwap(e.link, nil) {
			// The library gives up only where it thinks that trying again is useless.
			p.log.Error("the connection to the broker ended; connecting anew", "error", e.link.nc.LastError())
			p.heartbeat.Stop()
			e.link.cancel()
			p.dialAfter(ctx, p.retry.wait())
		}
	case clockSynced:
		if e.link == p.current.Load() {
			p.scheduleRenewal(e.link, e.identity)
			p.resync.Reset(jitter(p.opts.ResyncInterval, resyncJitter))
		}
	case clockNotSynced:
		p.log.Warn("the broker did not tell its time; asking again", "in", syncRetry, "error", e.err)
		p.resync.Reset(jitter(syncRetry, resyncJitter))
	case otherAgent:
		p.clashSeen(e.other)
	}
}

// dialAfter opens a connection in the background, the first one or one that
// replaces the current one.
func (p *loop) dialAfter(ctx context.Context, wait time.Duration) {
	if p.dialing {
		return
	}
	p.dialing = true
	renewal := p.current.Load() != nil
	if renewal {
		p.server.overlap.hold()
	}
	p.tasks.Go(func() {
		if !sleep(ctx, wait) {
			return
		}
		l, identity, err := p.dial(ctx)
		e := event{kind: linkOpened, link: l, identity: identity, renewal: renewal}
		if err != nil {
			e = event{kind: dialFailed, err: err}
		}
		select {
		case p.dialed <- e:
		case <-p.ended:
			if l != nil {
				l.drain(ctx, p.opts.DrainTimeout, p.opts.DrainTimeout)
				l.close()
			}
			return
		}
		if renewal && err != nil {
			p.releaseOverlap(ctx)
		}
	})
}

// releaseOverlap forgets which commands came in while there were two
// connections, once no copy of them can wait any more.
func (p *loop) releaseOverlap(ctx context.Context) {
	sleep(ctx, overlapMemory)
	p.server.overlap.release()
}

// adopt makes a new link the current one and retires the one before it.
func (p *loop) adopt(ctx context.Context, e event) {
	l := e.link
	old := p.current.Swap(l)
	p.connects.Add(1)
	p.noteStart()
	select {
	case <-p.ready:
	default:
		close(p.ready)
	}
	p.log.Info("taking commands", "server", l.nc.ConnectedUrlRedacted(), "user", e.identity.User, "account", e.identity.Account,
		"expires_in", e.identity.Expires, "renewal", e.renewal)
	p.connected(l)
	p.scheduleRenewal(l, e.identity)
	if l.timed {
		p.resync.Reset(jitter(p.opts.ResyncInterval, resyncJitter))
	} else {
		p.resync.Reset(jitter(syncRetry, resyncJitter))
	}
	if !e.renewal {
		return
	}
	p.tasks.Go(func() {
		if old != nil { // else it ended while the new one was being opened
			p.retire(ctx, old)
		}
		p.releaseOverlap(ctx)
	})
}

// retire lets old answer what it accepted, at most until the broker ends it.
func (p *loop) retire(ctx context.Context, old *link) {
	sleep(ctx, p.opts.RenewOverlap)
	bound := access.ReplyLifetime
	if !old.ends.IsZero() {
		bound = min(bound, max(time.Until(old.ends), time.Second))
	}
	if !old.drain(ctx, bound, p.opts.DrainTimeout) {
		p.log.Warn("a connection ended before all its commands were answered")
	}
	p.dropped.Add(old.droppedCommands())
	old.close()
}

// connected tells everybody that the connection is new: the broker may have
// missed anything.
func (p *loop) connected(l *link) {
	p.report.status(l, true)
	p.beat()
	p.watch.task.urge()
	p.audit.connected()
	p.server.jobs.connected()
	p.server.sessions.Connected()
}

func (p *loop) beat() {
	if l := p.current.Load(); l != nil {
		p.report.heartbeat(l)
		p.heartbeat.Reset(jitter(p.opts.HeartbeatInterval, heartbeatJitter))
	}
}

// scheduleRenewal plans the next connection well before the broker ends this
// one.
func (p *loop) scheduleRenewal(l *link, identity brokertime.Identity) {
	p.renew.Stop()
	l.ends = time.Time{}
	if identity.Expires > 0 {
		l.ends = time.Now().Add(identity.Expires)
	}
	if in := renewIn(identity.Expires, p.opts.RenewInterval); in > 0 {
		p.renew.Reset(in)
	}
}

// renewIn is the time until a renewal, 0 for never: well before the end, and no
// later than forced, if that is set.
func renewIn(expires, forced time.Duration) time.Duration {
	in := time.Duration(float64(expires) * (renewFrom + rand.Float64()*(renewTo-renewFrom)))
	if forced > 0 && (in == 0 || forced < in) {
		return forced
	}
	return in
}

// sync asks the broker for its time again, in the background.
func (p *loop) sync(ctx context.Context) {
	l := p.current.Load()
	if l == nil {
		return
	}
	p.tasks.Go(func() {
		identity, err := p.clock.Sync(ctx, l.nc)
		kind := clockSynced
		if err != nil {
			kind = clockNotSynced
		}
		p.noteStart()
		p.send(event{kind: kind, link: l, identity: identity, err: err})
	})
}

// notice takes a heartbeat under this device id, as the broker stored it.
func (p *loop) notice(msg *nats.Msg) {
	var h struct {
		Instance string `json:"instance"`
		Seq      uint64 `json:"seq"`
	}
	switch {
	case json.Unmarshal(msg.Data, &h) != nil:
	case h.Instance == p.instance:
		p.stored(h.Seq)
	case p.server.earlier(h.Instance):
		// An earlier run's last heartbeat may come late. It runs no more: the state
		// directory is locked.
	default:
		p.clashSeen(h.Instance)
	}
}

// stored takes note that one of our heartbeats was. Where some before it were
// not, the connection stood and the streams were out of its reach, behind a cut
// through the broker's cluster, say: hints of a new desired state and our status
// went the same way. Anybody may send us such a message, so that each heartbeat
// counts once at most.
func (p *loop) stored(seq uint64) {
	if seq <= p.heard || seq > p.report.beats {
		return
	}
	missed := p.heard != 0 && seq > p.heard+1
	p.heard = seq
	if l := p.current.Load(); missed && l != nil {
		p.log.Info("heartbeats were not stored for a while and are again; reading the desired state and reporting anew")
		p.looks = looksAfterCut
		p.audit.connected()
		p.report.status(l, true)
	}
	if p.looks > 0 {
		p.looks--
		p.watch.announced()
	}
}

func (p *loop) clashSeen(instance string) {
	// The first one is named: any device can make up others without end, and each
	// would be a new status.
	if !p.state.conditionHolds(command.ConditionIDClash) && p.state.setCondition(command.ConditionIDClash, true, "SeenOther",
		"another agent uses this device id: instance "+cut(instance, 64)) {
		p.log.Error("another agent uses this device id; stop one of them", "other_instance", cut(instance, 64))
	}
	p.clash.Reset(clashIntervals * p.opts.HeartbeatInterval)
}

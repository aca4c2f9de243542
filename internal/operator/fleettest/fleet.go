package fleettest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/directget"
)

// readers is how many desired states are read at one time.
const readers = 8

// Options of a fleet.
type Options struct {
	Devices int
	Prefix  string // of the ids; default "device-"
	// Heartbeat is the time between two heartbeats of a device; default 15 s, as agents
	// do. They are spread over it.
	Heartbeat time.Duration
	// React is what a device makes of a score that it does not reject; nil: [React].
	React func(device, deployment string, score command.Score) command.DeploymentStatus
}

// Fleet is a number of simulated devices. It is safe for concurrent use.
type Fleet struct {
	opts Options
	nc   *nats.Conn
	tb   testing.TB

	pending chan struct{} // holds a token while due is not empty

	mu      sync.Mutex
	ids     []string
	devices map[string]*device
	due     map[string]struct{} // devices that have to read their desired state
}

type device struct {
	online   bool
	beats    uint64
	revision uint64
	state    command.DesiredState
	status   command.Status
}

// Fleet starts devices, all of them online. They end with the test.
func (b *Broker) Fleet(tb testing.TB, o Options) *Fleet {
	tb.Helper()
	if o.Prefix == "" {
		o.Prefix = "device-"
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = command.HeartbeatInterval
	}
	if o.React == nil {
		o.React = React
	}
	f := &Fleet{opts: o, tb: tb, pending: make(chan struct{}, 1), devices: map[string]*device{}, due: map[string]struct{}{}}
	f.nc = b.dial(tb, broker.UserDevice, passwords.Device, command.DeviceInboxPrefix("any"), nats.ReconnectHandler(func(*nats.Conn) { f.rejoin() }))
	if _, err := f.nc.Subscribe(command.DesiredStateSubject("*"), func(m *nats.Msg) { f.announce(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]) }); err != nil {
		tb.Fatal(err)
	}
	for i := range o.Devices {
		id := fmt.Sprintf("%s%05d", o.Prefix, i)
		f.ids = append(f.ids, id)
		f.devices[id] = &device{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	wg.Go(func() { f.beat(ctx) })
	for range readers {
		wg.Go(func() { f.read(ctx) })
	}
	f.Join(f.ids...)
	return f
}

// IDs are those of the devices, in order.
func (f *Fleet) IDs() []string { return f.ids }

// Join brings devices online: they report, and read what they should run.
func (f *Fleet) Join(ids ...string) {
	f.tb.Helper()
	f.mu.Lock()
	for _, id := range ids {
		d := f.devices[id]
		d.online = true
		f.heartbeat(id, d)
		f.report(id, d)
	}
	f.mu.Unlock()
	f.announce(ids...)
	if err := f.nc.FlushTimeout(patience); err != nil {
		f.tb.Fatal(err)
	}
}

// Leave takes devices offline: they fall silent and go on with what they have.
func (f *Fleet) Leave(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		f.devices[id].online = false
	}
}

// Status is what the device last said of a deployment; ok is false where it runs
// nothing of that name.
func (f *Fleet) Status(id, deployment string) (s command.DeploymentStatus, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok = f.devices[id].status.Deployments[deployment]
	return s, ok
}

// Revision is that of the desired state that the device has.
func (f *Fleet) Revision(id string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.devices[id].revision
}

// Report makes every device say anew how it is, by what react makes of what it has;
// nil keeps the one before.
func (f *Fleet) Report(react func(device, deployment string, score command.Score) command.DeploymentStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if react != nil {
		f.opts.React = react
	}
	for _, id := range f.ids {
		d := f.devices[id]
		f.act(id, d)
		if d.online {
			f.report(id, d)
		}
	}
}

// React runs every service, except those with an image that says otherwise: one that
// contains "failed" ends with exit code 1 and is not started again, one that contains
// "backoff" cannot be pulled, and one that contains "pulling" is on its way for ever.
func React(_, _ string, score command.Score) command.DeploymentStatus {
	s := command.DeploymentStatus{Phase: command.PhaseRunning, Services: map[string]command.ServiceStatus{}}
	services, _ := score.Services()
	for _, service := range services {
		one := command.ServiceStatus{Phase: command.PhaseRunning, Image: service.Image}
		switch {
		case strings.Contains(service.Image, "failed"):
			code := 1
			one.Phase, one.ExitCode, one.LastError = command.PhaseFailed, &code, "ended with exit code 1"
		case strings.Contains(service.Image, "backoff"):
			one.Phase, one.LastError = command.PhaseBackoff, "no such image"
		case strings.Contains(service.Image, "pulling"):
			one.Phase = command.PhasePulling
		}
		if one.Phase != command.PhaseRunning {
			s.Phase = one.Phase
		}
		s.Services[service.Name] = one
	}
	return s
}

// rejoin is what devices do after each connect.
func (f *Fleet) rejoin() {
	f.mu.Lock()
	var ids []string
	for _, id := range f.ids {
		if d := f.devices[id]; d.online {
			f.heartbeat(id, d)
			f.report(id, d)
			ids = append(ids, id)
		}
	}
	f.mu.Unlock()
	f.announce(ids...)
}

// announce says that there may be a new desired state.
func (f *Fleet) announce(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if d := f.devices[id]; d != nil && d.online {
			f.due[id] = struct{}{}
		}
	}
	f.wake()
}

func (f *Fleet) wake() {
	if len(f.due) == 0 {
		return
	}
	select {
	case f.pending <- struct{}{}:
	default:
	}
}

// read reads desired states for those that have to.
func (f *Fleet) read(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.pending:
		}
		f.mu.Lock()
		id := ""
		for id = range f.due {
			break
		}
		delete(f.due, id)
		f.wake() // for the next reader
		f.mu.Unlock()
		if id == "" {
			continue
		}
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		m, found, err := directget.Last(one, f.nc, access.KVStream(command.DesiredStateBucket), command.DesiredStateSubject(id))
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			f.announce(id) // again: the broker is away
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		case found:
			f.take(id, m)
		}
	}
}

func (f *Fleet) take(id string, m directget.Message) {
	state := command.DesiredState{}
	if !m.Deleted {
		var err error
		if state, err = command.DecodeDocument[command.DesiredState](m.Data); err != nil {
			f.tb.Errorf("%s: the desired state of revision %d cannot be read: %v", id, m.Seq, err)
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.devices[id]
	if m.Seq <= d.revision || !d.online {
		return
	}
	d.revision, d.state = m.Seq, state
	f.act(id, d)
	f.report(id, d)
}

// act is what a device makes of its desired state.
func (f *Fleet) act(id string, d *device) {
	_, rejected := d.state.Split()
	d.status.Deployments = map[string]command.DeploymentStatus{}
	for name, score := range d.state.Deployments {
		var s command.DeploymentStatus
		if fault := rejected[name]; fault != nil {
			s = command.DeploymentStatus{Phase: command.PhaseRejected, Error: &command.ErrorDetail{Kind: fault.Kind, Message: fault.Message}}
		} else {
			s = f.opts.React(id, name, score)
		}
		s.Revision = d.revision
		d.status.Deployments[name] = s
	}
	d.status.DesiredRevision = d.revision
}

func (f *Fleet) report(id string, d *device) {
	s := d.status
	s.Schema, s.DeviceID, s.AgentVersion, s.Protocol = command.Schema, id, "v0.0.0-test", 1
	s.BootID, s.Instance, s.Runtime = "boot-"+id, "instance-"+id, command.RuntimeReady
	s.Deployments = maps.Clone(d.status.Deployments)
	f.publish(command.StatusSubject(id), s)
}

func (f *Fleet) heartbeat(id string, d *device) {
	d.beats++
	f.publish(command.HeartbeatSubject(id), command.Heartbeat{
		Schema: command.Schema, DeviceID: id, BootID: "boot-" + id, Instance: "instance-" + id,
		Seq: d.beats, DesiredRevision: d.revision, MemoryRSSBytes: 10 << 20,
	})
}

func (f *Fleet) publish(subject string, doc any) {
	data, err := json.Marshal(doc)
	if err != nil {
		panic(err) // a document of ours
	}
	// While the broker is away it is buffered; after a connect everything is said anew.
	_ = f.nc.Publish(subject, data)
}

// beat sends the heartbeats, in as many portions as the interval has tenths.
func (f *Fleet) beat(ctx context.Context) {
	const portions = 150
	tick := time.NewTicker(max(f.opts.Heartbeat/portions, time.Millisecond))
	defer tick.Stop()
	for at := 0; ; at = (at + 1) % portions {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		for _, id := range f.ids[len(f.ids)*at/portions : len(f.ids)*(at+1)/portions] {
			if d := f.devices[id]; d.online {
				f.heartbeat(id, d)
			}
		}
		f.mu.Unlock()
	}
}

// ReportOne makes one device say that all its deployments stand like that.
func (f *Fleet) ReportOne(id string, s command.DeploymentStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.devices[id]
	for name := range d.status.Deployments {
		s.Revision = d.revision
		d.status.Deployments[name] = s
	}
	f.report(id, d)
}

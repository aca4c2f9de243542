package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/internal/access"
)

const (
	// linkCheck is how often the connection is looked at, beside what it says by itself.
	linkCheck = time.Second
	// clockSync is how often the broker is asked for its time.
	clockSync = 10 * time.Minute
	// firstRetry to lastRetry are the pauses after a failure.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
)

var errNotConnected = errors.New("not connected to the broker")

// Start mirrors until ctx ends, and returns nil then. It may be called once.
func (m *Mirror) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { m.runTimers(ctx) })

	gone, err := m.nc.Subscribe(access.Disconnected, m.takeDisconnect)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", access.Disconnected, err)
	}
	defer func() { _ = gone.Unsubscribe() }() // the connection may be closed

	status := m.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	defer m.nc.RemoveStatusListener(status)
	tick := time.NewTicker(linkCheck)
	defer tick.Stop()
	pause := func() {
		select {
		case <-ctx.Done():
		case <-status:
		case <-tick.C: // the library drops what it has to tell while nobody listens
		}
	}
	for ctx.Err() == nil {
		m.setBehind(errNotConnected)
		for ctx.Err() == nil && !m.nc.IsConnected() {
			pause()
		}
		connects := m.nc.Stats().Reconnects
		session, end := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.session(session)
		}()
		for ctx.Err() == nil && m.nc.IsConnected() && m.nc.Stats().Reconnects == connects {
			pause()
		}
		end()
		<-done
	}
	m.setBehind(errors.New("stopped"))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awayTimer.Stop()
	return nil
}

// session follows every stream over one connection until ctx ends.
func (m *Mirror) session(ctx context.Context) {
	m.insist(ctx, "ask the broker for its time", func() error { _, err := m.clock.Sync(ctx, m.nc); return err })
	if m.opts.Prepare != nil {
		m.insist(ctx, "prepare the broker", func() error { return m.opts.Prepare(ctx, m.nc) })
	}
	js, err := jetstream.New(m.nc)
	if err != nil {
		m.log.Error("JetStream cannot be used", "error", err) // its options are wrong, and there are none
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range m.feeds {
		all.Go(func() {
			m.insist(ctx, "follow the stream "+f.stream, func() error {
				defer f.caughtUp.Store(false)
				return f.follow(ctx, js)
			})
		})
	}
	tick := time.NewTicker(clockSync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := m.clock.Sync(ctx, m.nc); err != nil && ctx.Err() == nil {
				m.log.Warn("the broker does not tell its time", "error", err)
			}
		}
	}
}

// insist tries until it succeeds or ctx ends, with pauses that grow, and logs a
// failure when it is another than the last.
func (m *Mirror) insist(ctx context.Context, what string, try func() error) {
	pause, last := firstRetry, ""
	for {
		began := time.Now()
		err := try()
		if err == nil || ctx.Err() != nil {
			return
		}
		m.setBehind(fmt.Errorf("%s: %w", what, err))
		if err.Error() != last {
			last = err.Error()
			m.log.Warn("cannot "+what+"; trying on", "error", err)
		}
		if time.Since(began) > time.Minute { // it worked for a while
			pause, last = firstRetry, ""
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastRetry)
	}
}

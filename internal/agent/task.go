package agent

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// task runs a function in a goroutine whenever it is poked, never twice at the
// same time; between runs it costs nothing, which counts where many agents share
// a process.
type task struct {
	run func(ctx context.Context)

	mu      sync.Mutex
	ctx     context.Context
	running bool
	again   bool
	urgent  chan struct{} // of capacity 1; made by start
	wg      sync.WaitGroup
}

// start lets the task run until ctx ends.
func (t *task) start(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ctx, t.urgent = ctx, make(chan struct{}, 1)
}

// urge is poke, and cuts a pause of the run that is under way short.
func (t *task) urge() {
	t.mu.Lock()
	if t.urgent != nil && t.running {
		select {
		case t.urgent <- struct{}{}:
		default:
		}
	}
	t.mu.Unlock()
	t.poke()
}

// pause waits for d or until urge is called, and tells whether ctx let it.
func (t *task) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-t.urgent:
	}
	return true
}

// poke asks for one run that begins after now.
func (t *task) poke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx == nil || t.ctx.Err() != nil {
		return
	}
	if t.running {
		t.again = true
		return
	}
	t.running = true
	ctx := t.ctx
	t.wg.Go(func() { t.loop(ctx) })
}

func (t *task) loop(ctx context.Context) {
	for {
		t.run(ctx)
		t.mu.Lock()
		if !t.again || ctx.Err() != nil {
			t.running = false
			t.mu.Unlock()
			return
		}
		t.again = false
		t.mu.Unlock()
	}
}

// stop waits for a run that is under way, whose context must have ended, and
// lets no other begin.
func (t *task) stop() {
	t.mu.Lock()
	t.ctx = nil
	t.mu.Unlock()
	t.wg.Wait()
}

// sleep waits for d, and tells whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// outlive is a context that ends some time after ctx has ended.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() { stop(); cancel() }
}

// backoff gives waits that double from least to most, each with a jitter that
// keeps a fleet from coming back all at once.
type backoff struct {
	least, most time.Duration
	next        time.Duration
}

func (b *backoff) wait() time.Duration {
	if b.next < b.least {
		b.next = b.least
	}
	d := b.next
	b.next = min(2*d, b.most)
	return jitter(d, 0.5)
}

func (b *backoff) reset() { b.next = 0 }

// jitter spreads d evenly over d ± share·d.
func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}

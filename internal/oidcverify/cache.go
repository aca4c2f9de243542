package oidcverify

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Stats is the state of a key cache.
type Stats struct {
	Keys        int       // keys in use
	LastSuccess time.Time // of the last fetch that brought keys; zero if none did
	Fetches     uint64    // fetches finished, failed ones included
	FetchErrors uint64    // fetches that failed
	LastError   string    // of the last fetch; empty if it succeeded
	Waiting     int       // Verify calls that wait for a fetch now
}

// flight is one fetch under way. err is set before done is closed.
type flight struct {
	done chan struct{}
	err  error
}

// cache holds the keys and decides when they are fetched.
type cache struct {
	cfg    IssuerConfig
	fetch  func(context.Context) (keySet, error)
	logger *slog.Logger

	ctx    context.Context // of the fetches: lives until close, whoever asked
	cancel context.CancelFunc
	wg     sync.WaitGroup // fetch goroutines

	mu          sync.RWMutex
	closed      bool
	keys        keySet
	flight      *flight // nil when no fetch is under way
	waiters     int
	nextAllowed time.Time            // earliest start of a fetch that a token causes
	absent      map[string]time.Time // key ids that the issuer did not have -> until when they cause no fetch
	st          Stats
	lastErr     error
}

func newCache(cfg IssuerConfig, fetch func(context.Context) (keySet, error), logger *slog.Logger) *cache {
	ctx, cancel := context.WithCancel(context.Background())
	return &cache{cfg: cfg, fetch: fetch, logger: logger, ctx: ctx, cancel: cancel, absent: map[string]time.Time{}}
}

func (c *cache) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

func (c *cache) stats() Stats {
	c.mu.RLock()
	defer c.mu.RUnlock()
	st := c.st
	st.Keys, st.Waiting = len(c.keys), c.waiters
	return st
}

// key returns the verification key for (alg, kid), fetching if need be and allowed.
func (c *cache) key(ctx context.Context, alg, kid string) (any, error) {
	c.mu.RLock()
	k := c.keys.find(alg, kid)
	c.mu.RUnlock()
	if k != nil {
		return k, nil
	}

	c.mu.Lock()
	if k := c.keys.find(alg, kid); k != nil {
		c.mu.Unlock()
		return k, nil
	}
	started := false
	if c.flight == nil {
		if !c.mayFetchLocked(kid) {
			defer c.mu.Unlock()
			return nil, c.absentLocked(kid)
		}
		c.startLocked()
		started = true
	}
	if c.waiters >= c.cfg.MaxWaiters {
		c.mu.Unlock()
		return nil, fail(ReasonUnavailable, "too many logins already wait for the issuer's keys")
	}
	c.waiters++
	f := c.flight
	c.mu.Unlock()

	var waitErr error
	select {
	case <-f.done:
	case <-ctx.Done():
		waitErr = ctx.Err()
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters--
	if k := c.keys.find(alg, kid); k != nil {
		return k, nil
	}
	switch {
	case waitErr != nil:
		return nil, &Error{Reason: ReasonUnavailable, Detail: "the issuer's keys did not come in time", Err: waitErr}
	case f.err != nil:
		return nil, &Error{Reason: ReasonUnavailable, Detail: "the issuer's keys could not be fetched", Err: f.err}
	}
	// Only who started the fetch knows that all of it happened after the question: one who
	// joined may have come with a key that was published meanwhile.
	if started {
		c.rememberAbsentLocked(kid)
	}
	return nil, c.absentLocked(kid)
}

func (c *cache) absentLocked(kid string) *Error {
	switch {
	case c.lastErr != nil:
		return &Error{Reason: ReasonUnavailable, Detail: "the issuer's keys could not be fetched", Err: c.lastErr}
	case len(c.keys) == 0:
		return fail(ReasonUnavailable, "the issuer's keys have not been fetched yet")
	}
	return fail(ReasonUnknownKey, "the issuer has no key %s of the token's algorithm", Clip(kid))
}

func (c *cache) mayFetchLocked(kid string) bool {
	now := time.Now()
	return !c.closed && !now.Before(c.nextAllowed) && !now.Before(c.absent[kid])
}

// rememberAbsentLocked notes kid. At most one id per fetch comes in, and fetches are
// rate-limited, so the table stays at about NegativeTTL / MinFetchInterval entries.
func (c *cache) rememberAbsentLocked(kid string) {
	now := time.Now()
	for id, until := range c.absent {
		if !now.Before(until) {
			delete(c.absent, id)
		}
	}
	c.absent[kid] = now.Add(c.cfg.NegativeTTL)
}

// startLocked begins a fetch that belongs to no caller.
func (c *cache) startLocked() {
	f := &flight{done: make(chan struct{})}
	c.flight = f
	c.nextAllowed = time.Now().Add(c.patienceLocked(c.cfg.MinFetchInterval))
	c.wg.Go(func() {
		keys, err := c.fetchContained()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.finishLocked(keys, err)
		f.err = err
		c.flight = nil
		close(f.done)
	})
}

// patienceLocked is how long to wait for the next fetch: usual, and less at the
// beginning, while no keys were ever there. Callout and issuer may start together, and
// nobody can sign in until both have met.
func (c *cache) patienceLocked(usual time.Duration) time.Duration {
	const first, doublings = 100 * time.Millisecond, 6
	if !c.st.LastSuccess.IsZero() || c.st.Fetches > doublings {
		return usual
	}
	return min(usual, first<<c.st.Fetches)
}

// fetchContained turns a panic (a decoder tripping over what an issuer serves) into an
// error: nobody else could recover it, and it would end the process.
func (c *cache) fetchContained() (keys keySet, err error) {
	defer func() {
		if p := recover(); p != nil {
			keys, err = nil, fmt.Errorf("panic while fetching the keys: %v", p)
		}
	}()
	return c.fetch(c.ctx)
}

func (c *cache) finishLocked(keys keySet, err error) {
	c.st.Fetches++
	before := c.st.LastError
	if err != nil {
		c.lastErr = err
		c.st.FetchErrors++
		c.st.LastError = err.Error()
		switch {
		case c.ctx.Err() != nil: // closing
		case before != c.st.LastError: // once per kind of failure, not once per attempt
			c.logger.Warn("cannot fetch the issuer's keys, keeping the old ones", "keys", len(c.keys), "error", err)
		default:
			c.logger.Debug("still cannot fetch the issuer's keys", "error", err)
		}
		return
	}
	c.keys, c.lastErr = keys, nil
	c.st.LastError, c.st.LastSuccess = "", time.Now()
	if before != "" {
		c.logger.Info("the issuer's keys can be fetched again", "keys", len(keys))
	} else {
		c.logger.Debug("fetched the issuer's keys", "keys", len(keys))
	}
}

// refresh starts a fetch, or joins the one under way, and waits for its end.
func (c *cache) refresh(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return context.Canceled
	}
	if c.flight == nil {
		c.startLocked()
	}
	f := c.flight
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cache) run(ctx context.Context) error {
	const retry = 5 * time.Second
	for {
		wait := c.cfg.Refresh
		if err := c.refresh(ctx); err != nil {
			c.mu.RLock()
			wait = min(wait, c.patienceLocked(retry))
			c.mu.RUnlock()
		}
		// A tenth of jitter, so that many verifiers do not ask in step.
		timer := time.NewTimer(wait - time.Duration(rand.Int64N(int64(wait)/10+1)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// Package brokertime keeps the broker's time, which is the only time that
// deadlines are counted in: a device whose own clock is wrong behaves as any
// other.
//
// The server's time leaves it at some moment of a round trip, so a clock keeps
// both bounds and carries them on with a monotonic clock that counts suspend:
//
//	var clock brokertime.Clock
//	if err := clock.Sync(ctx, nc); err != nil { … }
//	now, ok := clock.Earliest() // a caller builds a deadline from it
//	now, ok = clock.Latest()    // a device compares a deadline with it
//
// Both err towards "too late": an expired command never runs. The width between
// the bounds is the round trip, plus [Drift] of the time since the last Sync.
package brokertime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/access"
)

// Drift is how far a device's oscillator may run away from the broker's, as a
// share of the time since the last Sync: 200 ppm, twice what the worst common
// crystals do.
const Drift = 200e-6

// SyncTimeout bounds [Clock.Sync] where its context has no earlier deadline.
const SyncTimeout = 5 * time.Second

// Clock carries the broker's time on. The zero value is ready to be synced; it
// is safe for concurrent use and must not be copied.
type Clock struct {
	// Monotonic, for tests, replaces the monotonic clock. It must be set before
	// first use.
	Monotonic func() time.Duration

	mu     sync.RWMutex
	synced bool
	server time.Time     // what the server said
	asked  time.Duration // monotonic time at which the question left
	heard  time.Duration // monotonic time at which the answer came
}

// Identity is what the server says of a connection beside its time.
type Identity struct {
	User    string
	Account string
	// Expires is how long the server lets the connection live from the time of the
	// answer; 0 where it does not end.
	Expires time.Duration
}

type userInfo struct {
	Server struct {
		Time time.Time `json:"time"`
	} `json:"server"`
	Data struct {
		User    string        `json:"user"`
		Account string        `json:"account"`
		Expires time.Duration `json:"expires"` // nanoseconds
	} `json:"data"`
	Error *struct {
		Description string `json:"description"`
	} `json:"error"`
}

// ErrNoTime is returned where the server's answer carries no time.
var ErrNoTime = errors.New("the server's answer carries no time")

// Sync asks the server that nc is connected to for its time ($SYS.REQ.USER.INFO,
// which needs the right to publish there), and tells who nc is for it. On error
// the clock keeps what it had.
func (c *Clock) Sync(ctx context.Context, nc *nats.Conn) (Identity, error) {
	return c.SyncBy(ctx, func(ctx context.Context, subject string) ([]byte, error) {
		msg, err := nc.RequestWithContext(ctx, subject, nil)
		if err != nil {
			// A missing right to publish there shows as a timeout: the server says so on
			// the connection's error handler only.
			return nil, err
		}
		return msg.Data, nil
	})
}

// SyncBy is Sync for who has a way of their own to send a request.
func (c *Clock) SyncBy(ctx context.Context, request func(ctx context.Context, subject string) ([]byte, error)) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, SyncTimeout)
	defer cancel()
	asked := c.monotonic()
	data, err := request(ctx, access.UserInfo)
	heard := c.monotonic()
	if err != nil {
		return Identity{}, fmt.Errorf("ask the broker for its time on %s: %w", access.UserInfo, err)
	}
	info, err := decodeUserInfo(data)
	if err != nil {
		return Identity{}, fmt.Errorf("ask the broker for its time: %w", err)
	}
	c.set(info.Server.Time, asked, heard)
	return Identity{User: info.Data.User, Account: info.Data.Account, Expires: info.Data.Expires}, nil
}

// decodeUserInfo reads the answer to [access.UserInfo]; what it returns without
// an error carries a time.
func decodeUserInfo(data []byte) (userInfo, error) {
	var info userInfo
	if err := json.Unmarshal(data, &info); err != nil {
		return userInfo{}, err
	}
	if info.Error != nil {
		return userInfo{}, errors.New(info.Error.Description)
	}
	if info.Server.Time.IsZero() {
		return userInfo{}, ErrNoTime
	}
	return info, nil
}

func (c *Clock) set(server time.Time, asked, heard time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server, c.asked, c.heard, c.synced = server, asked, heard, true
}

// Earliest is the earliest that the broker's clock can show now. ok is false
// before the first Sync.
func (c *Clock) Earliest() (now time.Time, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.synced {
		return time.Time{}, false
	}
	since := c.monotonic() - c.heard
	return c.server.Add(since - drift(since)), true
}

// Latest is the latest that the broker's clock can show now. ok is false before
// the first Sync.
func (c *Clock) Latest() (now time.Time, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.synced {
		return time.Time{}, false
	}
	since := c.monotonic() - c.asked
	return c.server.Add(since + drift(since)), true
}

// Age is how long ago the last Sync was; ok is false before the first.
func (c *Clock) Age() (age time.Duration, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.monotonic() - c.heard, c.synced
}

func (c *Clock) monotonic() time.Duration {
	if c.Monotonic != nil {
		return c.Monotonic()
	}
	return monotonic()
}

func drift(since time.Duration) time.Duration { return time.Duration(float64(since) * Drift) }

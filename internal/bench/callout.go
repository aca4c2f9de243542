package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/stack"
)

// Callout is how many clients sign in per second through the real callout, each
// with a token of its own that is verified against the issuer's keys. Broker,
// callout, issuer and clients share the machine.
var Callout = Measurement{"callout", measureCallout}

func measureCallout(ctx context.Context, o Options, dir string) ([]Result, error) {
	s, err := stack.Start(ctx, stack.Options{Port: stack.AnyPort, DataDir: dir + "/stack"})
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	const people = 200
	tokens := make([]string, people)
	for i := range tokens {
		name := fmt.Sprintf("person-%d", i)
		if err := s.Issuer().AddUser(issuer.User{Name: name, Roles: []string{"fleet-viewer"}}); err != nil {
			return nil, err
		}
		if tokens[i], err = s.Issuer().Mint(name, issuer.MintOptions{}); err != nil {
			return nil, err
		}
	}
	bare, err := startBroker(ctx, dir+"/bare")
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	ours, err := logins(ctx, o.Logins, func(i int) (*nats.Conn, error) {
		return nats.Connect(s.NATSURL(), nats.Token(tokens[i%people]), nats.Timeout(10*time.Second), nats.NoReconnect())
	})
	if err != nil {
		return nil, err
	}
	static, err := logins(ctx, o.Logins, func(int) (*nats.Conn, error) { return dialOps(bare, nats.NoReconnect()) })
	if err != nil {
		return nil, err
	}
	r := Result{
		Name: "callout", What: "sign-ins per second, token verified (bare: static password)", Unit: "1/s", Value: ours, Bare: static, Ratio: ours / static,
		Target: ">= 1000", Met: ours >= 1000,
	}
	return []Result{r}, nil
}

// logins connects n times, 64 at once, and gives the rate per second.
func logins(ctx context.Context, n int, connect func(i int) (*nats.Conn, error)) (float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	var failure atomic.Pointer[error]
	start := time.Now()
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil && failure.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				nc, err := connect(i)
				if err != nil {
					failure.Store(&err)
					return
				}
				nc.Close()
			}
		})
	}
	wg.Wait()
	if err := failure.Load(); err != nil {
		return 0, fmt.Errorf("sign in: %w", *err)
	}
	return float64(n) / time.Since(start).Seconds(), ctx.Err()
}

package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
)

// Ping is the latency of one ping after the other, over TCP on loopback, against
// a plain request that crosses the same two accounts.
var Ping = Measurement{"ping", measurePing}

func measurePing(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	agents, err := startAgents(ctx, srv, 1, false, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	responder, err := bareResponder(srv, "bare")
	if err != nil {
		return nil, err
	}
	defer responder.Close()
	nc, err := dialOps(srv)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()

	// The two take turns, so that noise of the machine falls on both.
	const block = 250
	var ours, bare []time.Duration
	for round := 0; len(ours) < o.Pings; round++ {
		for range block {
			r := c.PingOne(ctx, agents.ids[0])
			if r.Err != nil {
				return nil, r.Err
			}
			if round > 3 {
				ours = append(ours, r.RTT)
			}
		}
		for range block {
			d, err := barePing(nc, "bare")
			if err != nil {
				return nil, err
			}
			if round > 3 {
				bare = append(bare, d)
			}
		}
	}
	return []Result{
		Result{Name: "ping_p50", What: "client ping, p50", Unit: "us", Value: micros(quantile(ours, 0.5))}.against(micros(quantile(bare, 0.5)), 1.5),
		Result{Name: "ping_p99", What: "client ping, p99", Unit: "us", Value: micros(quantile(ours, 0.99))}.beside(micros(quantile(bare, 0.99))),
	}, nil
}

// Scatter is the time until all agents of one process have answered, against a
// scatter of plain requests over one wildcard reply subscription.
var Scatter = Measurement{"scatter", measureScatter}

func measureScatter(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	var responders []*nats.Conn
	defer func() { closeAll(responders) }()
	var bareIDs []string
	for i := range o.Agents {
		id := fmt.Sprintf("bare-%05d", i)
		nc, err := bareResponder(srv, id, nats.InProcessServer(srv))
		if err != nil {
			return nil, err
		}
		responders, bareIDs = append(responders, nc), append(bareIDs, id)
	}
	agents, err := startAgents(ctx, srv, o.Agents, true, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	nc, err := dialOps(srv)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{Timeout: 30 * time.Second})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()

	var ours, bare []time.Duration
	for round := range o.Rounds + 2 {
		start := time.Now()
		answered := 0
		for r := range c.PingAll(ctx, agents.ids, client.FanOut{}) {
			if r.Err != nil {
				return nil, r.Err
			}
			answered++
		}
		took := time.Since(start)
		if answered != o.Agents {
			return nil, fmt.Errorf("%d outcomes for %d agents", answered, o.Agents)
		}
		took2, err := bareScatter(ctx, nc, bareIDs)
		if err != nil {
			return nil, err
		}
		if round > 1 {
			ours, bare = append(ours, took), append(bare, took2)
		}
	}
	what := fmt.Sprintf("ping of %d agents in one process, median", o.Agents)
	return []Result{
		Result{Name: "scatter", What: what, Unit: "ms", Value: millis(quantile(ours, 0.5))}.against(millis(quantile(bare, 0.5)), 1.5),
		Result{Name: "scatter_worst", What: fmt.Sprintf("the same, worst of %d", o.Rounds), Unit: "ms", Value: millis(quantile(ours, 1))}.beside(millis(quantile(bare, 1))),
	}, nil
}

// Offline is how soon a caller learns that nobody listens.
var Offline = Measurement{"offline", measureOffline}

func measureOffline(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	nc, err := dialOps(srv)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	var ours, bare []time.Duration
	for i := range max(o.Pings/10, 10) {
		start := time.Now()
		if _, err := c.Ping(ctx, "nobody"); err == nil {
			return nil, fmt.Errorf("a device that does not exist answered")
		}
		took := time.Since(start)
		start = time.Now()
		if _, err := nc.Request("device-commands.nobody.ping", nil, 5*time.Second); err == nil {
			return nil, fmt.Errorf("a device that does not exist answered")
		}
		took2 := time.Since(start)
		if i >= 5 {
			ours, bare = append(ours, took), append(bare, took2)
		}
	}
	p50 := Result{
		Name: "offline_p50", What: "offline answer with the last heartbeat looked up, p50", Unit: "us", Value: micros(quantile(ours, 0.5)),
	}.beside(micros(quantile(bare, 0.5)))
	p50.Target, p50.Met = "< 1 ms", p50.Value < 1000
	return []Result{p50}, nil
}

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/access"
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
	responder, err := bareResponder(srv, "bare", barePayload)
	if err != nil {
		return nil, err
	}
	defer responder.Close()
	c, err := newCaller(srv, 0)
	if err != nil {
		return nil, err
	}
	defer c.close()

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
			d, err := barePing(c.nc, "bare")
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
	responders, bareIDs, err := bareResponders(srv, o.Agents)
	defer closeAll(responders)
	if err != nil {
		return nil, err
	}
	agents, err := startAgents(ctx, srv, o.Agents, true, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	c, err := newCaller(srv, patient)
	if err != nil {
		return nil, err
	}
	defer c.close()

	data, err := dialData(srv)
	if err != nil {
		return nil, err
	}
	defer data.Close()

	var ours, bare, oursCPU, bareCPU []time.Duration
	for round := range o.Rounds + 2 {
		start, cpu := time.Now(), processorTime()
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
		cpu = processorTime() - cpu
		// The records of this round go to the broker a little later, in the background:
		// neither the bare round nor the next one is to pay for that.
		if err := awaitAudit(ctx, data, uint64(o.Agents*(round+1))); err != nil {
			return nil, err
		}
		cpu2 := processorTime()
		took2, err := bareScatter(ctx, c.nc, bareIDs)
		if err != nil {
			return nil, err
		}
		cpu2 = processorTime() - cpu2
		if round > 1 {
			ours, bare = append(ours, took), append(bare, took2)
			oursCPU, bareCPU = append(oursCPU, cpu), append(bareCPU, cpu2)
		}
	}
	what := fmt.Sprintf("ping of %d agents in one process, median", o.Agents)
	return []Result{
		Result{Name: "scatter", What: what, Unit: "ms", Value: millis(quantile(ours, 0.5))}.against(millis(quantile(bare, 0.5)), 1.5),
		Result{Name: "scatter_worst", What: fmt.Sprintf("the same, worst of %d", o.Rounds), Unit: "ms", Value: millis(quantile(ours, 1))}.beside(millis(quantile(bare, 1))),
		Result{Name: "scatter_cpu", What: "the same, processor time for each agent, broker and caller included, median", Unit: "us", Value: micros(quantile(oursCPU, 0.5)) / float64(o.Agents)}.
			beside(micros(quantile(bareCPU, 0.5)) / float64(o.Agents)),
	}, nil
}

// processorTime is what this process has used of the processors.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// awaitAudit waits until the broker has taken so many audit records in all.
func awaitAudit(ctx context.Context, nc *nats.Conn, records uint64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		msg, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+access.StreamAudit, nil)
		if err != nil {
			return fmt.Errorf("wait for %d audit records: %w", records, err)
		}
		var info struct {
			State struct {
				LastSeq uint64 `json:"last_seq"`
			} `json:"state"`
		}
		if err := json.Unmarshal(msg.Data, &info); err != nil {
			return fmt.Errorf("wait for audit records: %w", err)
		}
		if info.State.LastSeq >= records {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the broker has %d audit records of %d: %w", info.State.LastSeq, records, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Offline is how soon a caller learns that nobody listens.
var Offline = Measurement{"offline", measureOffline}

func measureOffline(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	c, err := newCaller(srv, 0)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var ours, bare []time.Duration
	for i := range max(o.Pings/10, 10) {
		start := time.Now()
		if _, err := c.Ping(ctx, "nobody"); err == nil {
			return nil, fmt.Errorf("a device that does not exist answered")
		}
		took := time.Since(start)
		start = time.Now()
		if _, err := c.nc.Request("device-commands.nobody.ping", nil, 5*time.Second); err == nil {
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

package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// Memory is what an idle agent costs in one process with its broker, heap and
// stacks and the broker's side of its connection included, beside a bare
// connection with the same subscriptions that has made one request.
var Memory = Measurement{"memory", measureMemory}

func measureMemory(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	before := inUse()
	conns, ids, err := bareResponders(srv, o.Agents)
	defer func() { closeAll(conns) }()
	if err != nil {
		return nil, err
	}
	for i, nc := range conns {
		id := ids[i]
		for _, subject := range []string{command.SeenSubject(id), command.DesiredStateSubject(id)} {
			if _, err := nc.Subscribe(subject, func(*nats.Msg) {}); err != nil {
				return nil, err
			}
		}
		if _, err := nc.Request(access.UserInfo, nil, 5*time.Second); err != nil {
			return nil, fmt.Errorf("bare request: %w", err)
		}
	}
	bare := inUse() - before
	closeAll(conns)
	conns = nil
	before = inUse()
	agents, err := startAgents(ctx, srv, o.Agents, true, "")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	perAgent := func(bytes uint64) float64 { return float64(bytes) / 1024 / float64(o.Agents) }
	r := Result{
		Name: "memory", What: fmt.Sprintf("memory of an idle agent and its connection, %d in one process", o.Agents), Unit: "KiB", Value: perAgent(inUse() - before),
	}.beside(perAgent(bare))
	r.Target, r.Met = "<= 80 KiB", r.Value <= 80
	return []Result{r}, nil
}

// inUse is the heap and stacks in use after a collection, in bytes.
func inUse() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers of the first let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// Growth is what the broker keeps of pings that are answered: memory in use after
// many of them, beside that after the first ones.
var Growth = Measurement{"growth", measureGrowth}

const (
	// growthShare is the part of the pings after which memory is first looked at:
	// tables of bounded size, buffers and the audit stream, which keeps 1,000 records
	// of each device's pings, are full by then.
	growthShare  = 4
	growthAgents = 20
)

func measureGrowth(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	agents, err := startAgents(ctx, srv, min(o.Agents, growthAgents), true, "")
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
	pinged := 0
	ping := func(until int) (uint64, error) {
		for pinged < until {
			for r := range c.PingAll(ctx, agents.ids, client.FanOut{}) {
				if r.Err != nil {
					return 0, r.Err
				}
				pinged++
			}
		}
		if err := awaitAudit(ctx, data, uint64(pinged)); err != nil {
			return 0, err
		}
		return inUse(), nil
	}
	early, err := ping(o.Growth / growthShare)
	if err != nil {
		return nil, err
	}
	from := pinged
	late, err := ping(o.Growth)
	if err != nil {
		return nil, err
	}
	per := (float64(late) - float64(early)) / float64(pinged-from)
	return []Result{{
		Name: "growth", What: fmt.Sprintf("memory in use of broker, agents and caller after %d pings", pinged), Unit: "MiB",
		Value: float64(late) / (1 << 20),
		// Bytes that stay of each ping would show: the broker once kept 460.
		Target: fmt.Sprintf("< 8 bytes more for each ping after the first %d", from), Met: per < 8,
	}, {
		Name: "growth_early", What: fmt.Sprintf("the same after %d", from), Unit: "MiB", Value: float64(early) / (1 << 20),
	}}, nil
}

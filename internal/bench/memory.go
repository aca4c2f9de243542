package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// Memory is what an idle agent costs in this process, its side of the broker
// included, and what pings leave behind.
var Memory = Measurement{"memory", measureMemory}

// mostPerAgent is the target, in KiB.
const mostPerAgent = 80

func measureMemory(ctx context.Context, o Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	before := inUse()
	agents, err := startAgents(ctx, srv, o.Agents, true, dir+"/agents")
	if err != nil {
		return nil, err
	}
	defer agents.close()
	c, done, err := opsClient(srv)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := awaitStatuses(ctx, c, o.Agents); err != nil {
		return nil, err
	}
	each := float64(inUse()-before) / float64(o.Agents) / 1024
	idle := Result{Name: "agent_memory", What: fmt.Sprintf("memory in use for each of %d idle agents in one process, broker included", o.Agents), Unit: "KiB", Value: each}
	idle.Target, idle.Met = fmt.Sprintf("<= %d KiB", mostPerAgent), each <= mostPerAgent

	data, err := dial(srv, broker.UserData, passwords.Data, command.InboxPrefix(command.UID(broker.UserData)))
	if err != nil {
		return nil, err
	}
	defer data.Close()
	// What remembers is bounded: the last 256 answers of an agent, the last 1,000
	// audit records of it at the broker. It fills up first, hence the few agents.
	total, few := 10*o.Pings, agents.ids[:min(o.Agents, pinged)]
	sent := 0
	for _, n := range []int{len(few) * o.fill, total} {
		before = inUse()
		if err := pingRounds(ctx, c, few, n); err != nil {
			return nil, err
		}
		sent += (n + len(few) - 1) / len(few) * len(few)
		if err := awaitAudit(ctx, data, uint64(sent)); err != nil {
			return nil, err
		}
	}
	left := float64(inUse()-before) / float64(total)
	pings := Result{Name: "ping_memory", What: fmt.Sprintf("memory in use that each of %d pings leaves behind, all in one process", total), Unit: "bytes", Value: left}
	pings.Target, pings.Met = "< 10 bytes", left < 10
	return []Result{idle, pings}, nil
}

const (
	pinged = 50   // agents
	fillUp = 1100 // pings of each
)

// pingRounds sends at least n pings.
func pingRounds(ctx context.Context, c *client.Client, devices []string, n int) error {
	for n > 0 {
		for r := range c.PingAll(ctx, devices, client.FanOut{}) {
			if r.Err != nil {
				return r.Err
			}
			n--
		}
	}
	return nil
}

// inUse is the memory of this process that is in use once it has come to rest:
// what lives on the heap, and stacks. Free room between objects does not count.
func inUse() int64 {
	var least int64
	for i := range 3 {
		time.Sleep(200 * time.Millisecond) // what is being published is not garbage yet
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if n := int64(m.HeapAlloc + m.StackInuse); i == 0 || n < least {
			least = n
		}
	}
	return least
}

package chaos

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// halfDead cuts agent and caller off, one after the other, without any of the
// connections ending.
func halfDead(t *testing.T) {
	w := newWorld(t, t.TempDir())
	device, caller := newProxy(t, w.nodes[0].addr), newProxy(t, w.nodes[0].addr)
	interval := size(natsconn.PingInterval, 500*time.Millisecond)
	opts := append(soon(), nats.PingInterval(interval))
	s := newAgents(t, 1, func(_ int, id string) agent.Options {
		return agent.Options{NATS: w.deviceConfig(id, []string{"nats://" + device.addr()}, opts...)}
	})
	c := w.client([]string{"nats://" + caller.addr()}, opts...)
	answers(t, c, s.ids, time.Now(), patience)
	for _, cut := range []struct {
		who string
		way *proxy
	}{{"agent", device}, {"caller", caller}} {
		cut.way.freeze(false)
		begin := time.Now()
		// A ping is sent at each interval; two may be unanswered when the next is due.
		limit := time.Duration(natsconn.MaxPings+2)*interval + 5*time.Second
		seen := map[command.Outcome]int{}
		again := time.NewTicker(50 * time.Millisecond)
		for last := command.Outcome(""); last != command.OutcomeOK; seen[last]++ {
			<-again.C
			if time.Since(begin) > limit {
				t.Fatalf("the %s has not noticed after %v: %v", cut.who, limit, seen)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			asked := time.Now()
			_, err := c.Ping(ctx, s.ids[0])
			cancel()
			if took := time.Since(asked); took > 3*time.Second {
				t.Errorf("a ping of 1 s took %v: %v", took, err)
			}
			switch last = outcome(err); last {
			case command.OutcomeOK, command.OutcomeTimeout, command.OutcomeOffline, command.OutcomeFailed:
			default:
				t.Fatalf("%s cut off: %v", cut.who, err)
			}
		}
		again.Stop()
		t.Logf("%s cut off: back after %v at a ping interval of %v (%v in production); outcomes meanwhile %v",
			cut.who, time.Since(begin).Round(10*time.Millisecond), interval, natsconn.PingInterval, seen)
	}
}

// hostExec lets an agent run programs on this machine, as whoever runs the tests.
func hostExec(t *testing.T) workload.Policy {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return workload.Policy{Host: true, HostUser: me.Username}
}

// lossAndLatency sends everything over a bad line: netem where the kernel has it,
// else real loss by the packet filter, and the latency by a proxy.
func lossAndLatency(t *testing.T) {
	const each = 100 * time.Millisecond // each way
	w := &world{t: t}
	l := newLAN(t)
	address := lanAddress(11)
	w.addNode(nodeOptions{Address: address, Broker: broker.Config{
		Host: address, Port: clientPort, StoreDir: t.TempDir(), UserPass: staticUsers(),
	}}, func(pid int) error { return l.plug(pid, 11) })
	w.provision(broker.ProvisionOptions{})
	way := newProxy(t, w.nodes[0].addr)
	// Replies leave through eth; what comes in is delayed the other way around.
	if netem := exec.Command("tc", "qdisc", "add", "dev", l.bridge.Name, "root", "netem", "delay", each.String(), "loss", "3%"); netem.Run() == nil {
		w.nodes[0].inside("tc", "qdisc", "add", "dev", "eth", "root", "netem", "delay", each.String(), "loss", "3%")
		t.Log("loss and latency by netem")
	} else {
		way.setDelay(each)
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			w.nodes[0].inside("iptables", "-A", chain, "-m", "statistic", "--mode", "random", "--probability", "0.03", "-j", "DROP")
		}
		t.Log("no netem in this kernel: loss by the packet filter, latency by a proxy")
	}
	urls := []string{"nats://" + way.addr()}
	policy := hostExec(t)
	s := newAgents(t, 3, func(_ int, id string) agent.Options {
		return agent.Options{NATS: w.deviceConfig(id, urls, soon()...), StateDir: t.TempDir(), Policy: policy}
	})
	c := w.client(urls)
	t.Logf("first answers after %v", answers(t, c, s.ids, time.Now(), patience).Round(time.Millisecond))

	const lines = 20000
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	ran := filepath.Join(t.TempDir(), "ran")
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range size(30, 6) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			var got bytes.Buffer
			r, err := c.Exec(ctx, s.ids[i%len(s.ids)], client.ExecOptions{
				Host: true, Argv: []string{"/bin/sh", "-c", `echo "$0" >> "$1"; seq 1 "$2"`, fmt.Sprintf("run-%d", i), ran, fmt.Sprint(lines)}, Stdout: &got,
			})
			switch {
			case err != nil:
				t.Errorf("exec %d: %v", i, err)
			case r.ExitCode != 0 || !bytes.Equal(got.Bytes(), want.Bytes()):
				t.Errorf("exec %d: exit code %d, %d bytes of output, want %d", i, r.ExitCode, got.Len(), want.Len())
			}
		})
	}
	wg.Wait()
	t.Logf("%d execs of %d bytes of output each: %v", size(30, 6), want.Len(), time.Since(begin).Round(time.Millisecond))
	text, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	for i := range size(30, 6) {
		if n := strings.Count(string(text), fmt.Sprintf("run-%d\n", i)); n != 1 {
			t.Errorf("exec %d ran %d times", i, n)
		}
	}
}

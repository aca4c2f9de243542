package chaos

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const (
	clientPort = 4222
	routePort  = 6222
)

// newCluster runs three brokers, each in a network namespace of its own, as hosts
// 11, 12 and 13 of a switch, and agents spread over them: agent i is connected to
// broker i modulo 3 first, and knows the others.
func newCluster(t *testing.T) (*world, *agents) {
	t.Helper()
	w := &world{t: t}
	l := newLAN(t)
	var routes []string
	for i := range 3 {
		routes = append(routes, fmt.Sprintf("nats-route://%s:%d", lanAddress(11+i), routePort))
	}
	for i := range 3 {
		address := lanAddress(11 + i)
		w.addNode(nodeOptions{Address: address, Broker: broker.Config{
			ServerName: fmt.Sprintf("n%d", i), Host: address, Port: clientPort, StoreDir: t.TempDir(), UserPass: staticUsers(),
			Cluster: &broker.Cluster{Name: "chaos", Port: routePort, Routes: routes, Password: password},
		}}, func(pid int) error { return l.plug(pid, 11+i) })
	}
	w.provision(broker.ProvisionOptions{Replicas: 3})
	s := newAgents(t, size(60, 12), func(i int, id string) agent.Options {
		urls := append(slices.Clone(w.urls[i%3:]), w.urls[:i%3]...)
		cfg := w.deviceConfig(id, urls, append(soon(), nats.DontRandomize())...)
		return agent.Options{NATS: cfg, HeartbeatInterval: 2 * time.Second, RetryMin: 100 * time.Millisecond, RetryMax: time.Second}
	})
	answers(t, w.client(w.urls), s.ids, time.Now(), patience)
	return w, s
}

// desire writes an empty desired state of each device, and gives the revisions.
// A write that fails is repeated until limit.
func desire(t *testing.T, nc *nats.Conn, ids []string, limit time.Duration) map[string]uint64 {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	revisions := map[string]uint64{}
	for _, id := range ids {
		testwait.For(t, limit, "a write of desired state of "+id, func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			ack, err := js.Publish(ctx, command.DesiredStateSubject(id), []byte(`{"schema":1,"deployments":{}}`))
			if err == nil {
				revisions[id] = ack.Sequence
			}
			return err == nil
		})
	}
	return revisions
}

// received waits until each device says, in its answer to a ping, that it has the
// revision.
func received(t *testing.T, c *client.Client, revisions map[string]uint64, limit time.Duration) time.Duration {
	t.Helper()
	begin := time.Now()
	for id, want := range revisions {
		testwait.For(t, limit, "desired state at "+id, func() bool {
			reply, err := c.Ping(context.Background(), id)
			return err == nil && reply.DesiredRevision >= want
		})
	}
	return time.Since(begin)
}

func clusterNodeKilled(t *testing.T) {
	w, s := newCluster(t)
	c := w.client(w.urls)
	data := w.mustConn(access.Data, w.urls)
	victim := random(t).IntN(3)
	t.Logf("broker n%d is killed", victim)
	w.nodes[victim].kill()
	begin := time.Now()
	t.Logf("every device answers after %v", answers(t, c, s.ids, begin, patience).Round(time.Millisecond))
	revisions := desire(t, data, s.ids, patience)
	t.Logf("desired state of all is written after %v", time.Since(begin).Round(time.Millisecond))
	received(t, c, revisions, patience)
	t.Logf("and received after %v", time.Since(begin).Round(time.Millisecond))

	w.nodes[victim].start()
	begin = time.Now()
	// It serves again: a caller that knows no other broker reaches every device, and
	// what it stores is what the others store.
	alone := w.client(w.urls[victim : victim+1])
	t.Logf("it is back: every device answers through it after %v", answers(t, alone, s.ids, begin, patience).Round(time.Millisecond))
	revisions = desire(t, w.mustConn(access.Data, w.urls[victim:victim+1]), s.ids, patience)
	received(t, alone, revisions, patience)
}

func clusterPartition(t *testing.T) {
	w, s := newCluster(t)
	lonely := random(t).IntN(3)
	others := []int{(lonely + 1) % 3, (lonely + 2) % 3}
	majority := []string{w.urls[others[0]], w.urls[others[1]]}
	var behind, before []string // devices connected to the lonely one, and the rest
	for i, id := range s.ids {
		if i%3 == lonely {
			behind = append(behind, id)
		} else {
			before = append(before, id)
		}
	}
	c := w.client(majority)
	data := w.mustConn(access.Data, majority)
	received(t, c, desire(t, data, s.ids, patience), patience)

	t.Logf("broker n%d is cut off from the others", lonely)
	for _, i := range others {
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			flag := map[string]string{"INPUT": "-s", "OUTPUT": "-d"}[chain]
			w.nodes[lonely].inside("iptables", "-A", chain, flag, lanAddress(11+i), "-j", "DROP")
		}
	}
	begin := time.Now()
	revisions := desire(t, data, s.ids, patience)
	t.Logf("the majority has written desired state of all after %v", time.Since(begin).Round(time.Millisecond))
	here := map[string]uint64{}
	for _, id := range before {
		here[id] = revisions[id]
	}
	received(t, c, here, patience)
	// What callers of the majority learn of a device behind the cut: at first nobody
	// knows that the route is dead.
	noticed := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.Ping(ctx, behind[0])
		switch outcome(err) {
		case command.OutcomeOffline:
			return true
		case command.OutcomeTimeout:
			// The slice does not wait for that, but for some heartbeats to be lost.
			return !full && time.Since(begin) > 5*time.Second
		default:
			t.Fatalf("%s behind the cut: %v", behind[0], err)
		}
		return false
	}
	testwait.For(t, 2*time.Minute, "the brokers to notice the cut", noticed)
	if full {
		t.Logf("a device behind the cut is offline after %v", time.Since(begin).Round(time.Second))
	}

	w.nodes[lonely].inside("iptables", "-F")
	begin = time.Now()
	t.Logf("the cut is over: every device answers after %v", answers(t, c, s.ids, begin, patience).Round(time.Millisecond))
	received(t, c, revisions, patience)
	t.Logf("and has the desired state written meanwhile after %v", time.Since(begin).Round(time.Millisecond))
}

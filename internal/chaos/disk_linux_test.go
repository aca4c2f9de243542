package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func brokerDiskFull(t *testing.T) {
	d := newDisk(t, 64<<20)
	store := filepath.Join(d.dir, "nats")
	w := newWorld(t, store)
	policy := hostExec(t)
	s := newAgents(t, 3, func(_ int, id string) agent.Options {
		return agent.Options{NATS: w.deviceConfig(id, w.urls, soon()...), StateDir: t.TempDir(), Policy: policy}
	})
	c, data := w.client(w.urls), w.mustConn(access.Data, w.urls)
	first := desire(t, data, s.ids, patience)
	received(t, c, first, patience)
	commands := 0 // execs that ended
	run := func(when string) {
		t.Helper()
		for _, id := range s.ids {
			if err := runTrue(c, id); err != nil {
				t.Errorf("exec on %s, %s: %v", id, when, err)
			}
			commands++
		}
	}
	run("before")
	awaitExecs(t, c, commands)

	d.fill()
	js, err := jetstream.New(data)
	if err != nil {
		t.Fatal(err)
	}
	// What fits in pages that are allocated already may be taken yet.
	var refusal error
	document := []byte(`{"schema":1,"deployments":{},"pad":"` + strings.Repeat("x", 16<<10) + `"}`)
	testwait.For(t, patience, "a write of desired state to fail", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, refusal = js.Publish(ctx, command.DesiredStateSubject(s.ids[0]), document)
		return refusal != nil
	})
	t.Logf("a write of desired state to a full disk: %v", refusal)
	answers(t, c, s.ids, time.Now(), patience)
	run("with the broker's disk full")

	d.clear()
	_, refusal = js.Publish(context.Background(), command.DesiredStateSubject(s.ids[0]), document)
	t.Logf("with room again, nothing else done: %v", refusal)
	if refusal != nil {
		// nats-server turns JetStream off when its disk is full, until it is started
		// again.
		w.nodes[0].kill()
		w.nodes[0].start()
		w.provision(broker.ProvisionOptions{})
	}
	begin := time.Now()
	received(t, c, desire(t, data, s.ids, patience), patience)
	run("afterwards")
	awaitExecs(t, c, commands)
	t.Logf("everything is stored %v after there is room", time.Since(begin).Round(time.Millisecond))
}

// runTrue runs a program on a device, with time for a busy machine.
func runTrue(c *client.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Exec(ctx, id, client.ExecOptions{Host: true, Argv: []string{"true"}})
	return err
}

// awaitExecs waits until so many records of exec with the outcome ok are stored,
// and wants the chains of all devices whole.
func awaitExecs(t *testing.T, c *client.Client, want int) {
	t.Helper()
	var entries []client.AuditEntry
	var last error
	testwait.For(t, patience, fmt.Sprintf("%d audit records of exec", want), func() bool {
		entries, last = records(c)
		n := 0
		for _, e := range entries {
			if e.Record.Verb == command.VerbExec && e.Record.Outcome == command.OutcomeOK {
				n++
			}
		}
		return last == nil && n >= want
	})
	for _, gap := range client.CheckChain(entries) {
		t.Errorf("the audit chain is broken: %v", gap)
	}
}

// records are all audit records, or why they cannot be read.
func records(c *client.Client) (entries []client.AuditEntry, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for e, err := range c.Audit(ctx, client.AuditFilter{}) {
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func agentDiskFull(t *testing.T) {
	d := newDisk(t, 1<<20)
	w := newWorld(t, t.TempDir())
	policy := hostExec(t)
	s := newAgents(t, 1, func(_ int, id string) agent.Options {
		return agent.Options{NATS: w.deviceConfig(id, w.urls, soon()...), StateDir: filepath.Join(d.dir, "state"), Policy: policy}
	})
	c := w.client(w.urls)
	ran := filepath.Join(t.TempDir(), "ran")
	run := func(name string) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := c.Exec(ctx, s.ids[0], client.ExecOptions{Host: true, Argv: []string{"/bin/sh", "-c", `echo "$0" >> "$1"`, name, ran}})
		return err
	}
	if err := run("before"); err != nil {
		t.Fatal(err)
	}
	d.fill()
	// The files of the agent have some room that was theirs before.
	var refusal error
	accepted := 0
	testwait.For(t, patience, "a refusal", func() bool {
		refusal = run(fmt.Sprintf("full-%d", accepted))
		if refusal == nil {
			accepted++
		}
		return refusal != nil
	})
	refused := fmt.Sprintf("full-%d", accepted)
	t.Logf("%d execs were noted in room that was there; then: %v", accepted, refusal)
	if outcome(refusal) != command.OutcomeBusy || !strings.Contains(refusal.Error(), "disk") && !strings.Contains(refusal.Error(), "spool") {
		t.Errorf("a full disk is told as %v", refusal)
	}
	answers(t, c, s.ids, time.Now(), patience)

	d.clear()
	begin := time.Now()
	testwait.For(t, patience, "exec to work again", func() bool { return run("after") == nil })
	t.Logf("exec works %v after there is room", time.Since(begin).Round(time.Millisecond))
	text, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), refused+"\n") {
		t.Errorf("%s was refused, and ran", refused)
	}
	if n := strings.Count(string(text), "\n"); n != accepted+2 {
		t.Errorf("%d programs ran, want %d", n, accepted+2)
	}
	awaitExecs(t, c, accepted+2)
}

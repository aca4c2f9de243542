package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// caller is a client of the world's operators.
func (w *world) caller() *client.Client {
	w.t.Helper()
	nc, err := nats.Connect(w.broker.ClientURL(), nats.UserInfo(broker.UserOps, password), nats.CustomInboxPrefix(command.InboxPrefix(command.UID(broker.UserOps))))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	c, err := client.New(nc, client.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// lines are the numbers of the whole lines of timed output, and when the last was.
func lines(t *testing.T, text string) (numbers []string, last time.Time) {
	t.Helper()
	for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
		when, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		at, err := time.Parse(time.RFC3339Nano, when)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		last, numbers = at, append(numbers, rest)
	}
	return numbers, last
}

// TestAnAgentThatIsKilledWhileItStreams kills the real program with SIGKILL in
// the middle of logs, an exec in a container and one on the host.
func TestAnAgentThatIsKilledWhileItStreams(t *testing.T) {
	p := hostpodman.Start(t)
	p.Service(t, device, "hello", "web", "sh", "-c", "i=0; while :; do seq $i $((i+99)); i=$((i+100)); sleep 0.01; done")
	w := newWorldOf(t, p.Socket, "[exec]\nhost = true\nuser = \"nobody\"\n")
	agent := w.start()
	c := w.caller()
	up := func(but string) (instance string) {
		t.Helper()
		testwait.For(t, patience, "the agent", func() bool {
			reply, err := c.Ping(t.Context(), device)
			d, statusErr := c.Device(t.Context(), device)
			if err != nil || statusErr != nil || d.Status == nil || d.Status.Instance != reply.Instance || reply.Instance == but || d.Status.Runtime != command.RuntimeReady {
				return false
			}
			instance = reply.Instance
			return true
		})
		return instance
	}
	first := up("")

	type end struct {
		r   client.ExecResult
		err error
		at  time.Time
	}
	var text syncbuf.Buffer
	logs := make(chan end, 1)
	go func() {
		err := c.Logs(context.Background(), device, client.LogsOptions{Container: "web", Stdout: &text, Follow: true, Timestamps: true})
		logs <- end{err: err, at: time.Now()}
	}()
	execs := make(chan end, 2)
	var said syncbuf.Buffer
	for _, o := range []client.ExecOptions{
		{Container: "web", Argv: []string{"sh", "-c", "setsid -f setsid -f sleep 97654301; echo ready; exec sleep 97654302"}},
		{Host: true, Argv: []string{"sh", "-c", "setsid -f setsid -f sleep 97654303; echo ready; exec sleep 97654304"}},
	} {
		o.Stdout = &said
		go func() {
			r, err := c.Exec(context.Background(), device, o)
			execs <- end{r, err, time.Now()}
		}()
	}
	programs := []string{"97654301", "97654302", "97654303", "97654304"}
	running := func() (n int) {
		for _, word := range programs {
			if hostpodman.Running(word) {
				n++
			}
		}
		return n
	}
	testwait.For(t, patience, "logs and programs", func() bool {
		return strings.Count(said.String(), "ready") == 2 && running() == 4 && strings.Count(text.String(), "\n") > 20
	})
	agent.end(syscall.SIGKILL)
	killed := time.Now()
	if n := running(); n != 4 {
		t.Errorf("%d programs are left by the agent, want 4; without systemd nothing ends them", n)
	}

	// The next run ends what the last one left before it takes a command.
	agent = w.start()
	second := up(first)
	if n := running(); n != 0 {
		t.Errorf("%d programs go on under the next run of the agent", n)
	}

	// The callers are told, within the time that a device may be silent.
	const bound = command.SessionLease + command.SessionKeepalive
	deadline := time.NewTimer(2 * command.SessionLease)
	defer deadline.Stop()
	await := func(c <-chan end) end {
		t.Helper()
		select {
		case e := <-c:
			if e.at.Sub(killed) > bound {
				t.Errorf("a caller was told after %v, want at most %v", e.at.Sub(killed), bound)
			}
			return e
		case <-deadline.C:
			t.Fatal("a caller is not told that the agent is gone")
			return end{}
		}
	}
	if e := await(logs); !errors.Is(e.err, client.ErrTimeout) {
		t.Errorf("logs: %v", e.err)
	}
	var requests []string
	for range 2 {
		e := await(execs)
		if !errors.Is(e.err, client.ErrStartedNoResult) || !strings.Contains(e.err.Error(), e.r.RequestID) {
			t.Errorf("exec: %+v, %v", e.r, e.err)
		}
		if _, err := c.Result(t.Context(), device, e.r.RequestID); !errors.Is(err, client.ErrStartedNoResult) || !strings.Contains(err.Error(), "how it ended is not known") {
			t.Errorf("the result: %v", err)
		}
		requests = append(requests, e.r.RequestID)
	}

	// Logs go on from the last line that came.
	numbers, last := lines(t, text.String())
	var rest syncbuf.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		logs <- end{err: c.Logs(ctx, device, client.LogsOptions{Container: "web", Stdout: &rest, Follow: true, Timestamps: true, Since: last.Add(time.Nanosecond)})}
	}()
	testwait.For(t, patience, "more lines", func() bool { return strings.Count(rest.String(), "\n") > 20 })
	cancel()
	<-logs
	more, _ := lines(t, rest.String())
	for i, n := range append(numbers, more...) {
		if n != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, n)
		}
	}

	// The record of each exec has an end, and no second one after another kill.
	ends := func() map[string]int {
		found := map[string]int{}
		for e, err := range c.Audit(t.Context(), client.AuditFilter{Device: device, From: 1}) {
			if err != nil {
				t.Fatal(err)
			}
			if r := e.Record; r.Event == command.AuditEnd && r.Kind == command.KindStartedNoResult && r.Caller.User == broker.UserOps && r.Verb == command.VerbExec {
				found[r.RequestID]++
			}
		}
		return found
	}
	testwait.For(t, patience, "the ends in audit", func() bool { return len(ends()) == 2 })
	agent.end(syscall.SIGKILL)
	w.start()
	up(second)
	for _, id := range requests {
		if n := ends()[id]; n != 1 {
			t.Errorf("the end of %s is recorded %d times", id, n)
		}
	}
}

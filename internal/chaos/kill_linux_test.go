package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const victim = "d1"

// agentProcess is the real program, which a test kills.
type agentProcess struct {
	t              *testing.T
	binary, config string
	cmd            *exec.Cmd
}

func newAgentProcess(t *testing.T, w *world) *agentProcess {
	t.Helper()
	dir := t.TempDir()
	p := &agentProcess{t: t, binary: filepath.Join(dir, "fleet-agent"), config: filepath.Join(dir, "agent.toml")}
	build := exec.Command("go", "build", "-o", p.binary, "github.com/harmony-fleet/fleet/cmd/fleet-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	text := fmt.Sprintf(`[agent]
device_id = %q
runtime_enabled = false
state_dir = %q
[nats]
url = %q
retry_min = "50ms"
retry_max = "200ms"
[credentials]
type = "shared"
user = %q
password = %q
[exec]
host = true
user = %q
[log]
level = "error"
`, victim, filepath.Join(dir, "state"), w.urls[0], broker.UserDevice, password, hostExec(t).HostUser)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	t.Cleanup(p.kill)
	return p
}

func (p *agentProcess) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.binary, "--config", p.config)
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *agentProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
}

// request is one exec, and what its caller heard of it.
type request struct {
	id       string
	deadline time.Time
	heard    []command.Outcome // of each answer that decides it; no two may differ
	message  string            // of the last one
}

// agentKilled sends execs, which callers repeat under the same request id until
// they know how it ended, to an agent that is killed again and again.
func agentKilled(t *testing.T) {
	w := newWorld(t, t.TempDir())
	p := newAgentProcess(t, w)
	rnd := random(t)
	nc := w.mustConn(access.Ops, w.urls)
	c := w.client(w.urls)
	answers(t, c, []string{victim}, time.Now(), patience)

	n := size(200, 40) // of one caller, of whom the agent remembers 256
	ran := filepath.Join(t.TempDir(), "ran")
	requests := make([]*request, n)
	next := make(chan int, n)
	patiences := make([]time.Duration, n) // from sending to the deadline
	pauses := make([]time.Duration, n)    // before sending
	for i := range n {
		next <- i
		patiences[i] = time.Duration(rnd.Int64N(int64(3*time.Second))) + 20*time.Millisecond
		pauses[i] = time.Duration(rnd.Int64N(int64(size(2*time.Second, time.Second))))
	}
	close(next)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for i := range next {
				<-time.After(pauses[i])
				r := &request{id: command.NewRequestID(), deadline: time.Now().Add(patiences[i])}
				requests[i] = r
				r.repeat(nc, c, ran)
			}
		})
	}
	done := make(chan struct{})
	go func() { // ends with the callers
		defer close(done)
		callers.Wait()
	}()
	kills := 0
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-time.After(time.Duration(rnd.Int64N(int64(600*time.Millisecond))) + 30*time.Millisecond):
			p.kill()
			kills++
			p.start()
		}
	}
	answers(t, c, []string{victim}, time.Now(), patience)
	starts := readStarts(t, ran)
	tally := map[command.Outcome]int{}
	for _, r := range requests {
		tally[r.check(t, c, starts[r.id])]++
		delete(starts, r.id)
	}
	for id := range starts {
		t.Errorf("a program ran for %q, which nobody asked for", id)
	}
	t.Logf("%d execs, %d kills: %v", n, kills, tally)
	checkAudit(t, c, requests, readStarts(t, ran))
}

// repeat sends the request until an answer decides it, at most until some seconds
// after its deadline.
func (r *request) repeat(nc *nats.Conn, c *client.Client, ran string) {
	// The start time of the process, which the kernel notes, tells when it was
	// started, however long the shell takes to come here.
	const script = `read -r stat < /proc/$$/stat; echo "$0 $stat" >> "$1"`
	payload, err := json.Marshal(command.ExecRequest{Host: true, Argv: []string{"/bin/sh", "-c", script, r.id, ran}})
	if err != nil {
		panic(err) // strings always marshal
	}
	for after := 0; after < 2; {
		if time.Now().After(r.deadline.Add(10 * time.Second)) {
			return
		}
		outcome, message := r.once(nc, c, payload)
		switch outcome {
		case command.OutcomeOK, command.OutcomeExpired, command.OutcomeStartedNoResult, command.OutcomeDenied:
			r.heard, r.message = append(r.heard, outcome), message
			after++ // and asks once more: the answer must be the same
		default: // busy, duplicate, rejected since it restarted, no answer
			<-time.After(time.Duration(20+rand.IntN(30)) * time.Millisecond)
		}
	}
}

// once sends the request to the agent that runs now.
func (r *request) once(nc *nats.Conn, c *client.Client, payload []byte) (command.Outcome, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	pong, err := c.Ping(ctx, victim)
	if err != nil {
		return outcome(err), err.Error()
	}
	msg := &nats.Msg{Subject: command.Subject(victim, command.VerbExec), Header: nats.Header{}, Data: payload}
	command.RequestHeader{RequestID: r.id, Deadline: r.deadline, Instance: pong.Instance}.Write(msg.Header)
	reply, err := nc.RequestMsg(msg, time.Second)
	if err != nil {
		return command.OutcomeTimeout, err.Error()
	}
	if _, err := command.DecodeReply[command.ExecReply](reply.Header, reply.Data); err != nil {
		return outcome(err), err.Error()
	}
	return command.OutcomeOK, ""
}

// check compares what the caller heard, and what the agent says now, with what
// ran. It gives the outcome.
func (r *request) check(t *testing.T, c *client.Client, starts []time.Time) command.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	said, err := c.Result(ctx, victim, r.id)
	now := fmt.Sprintf("%+v, %v", said, err)
	if len(r.heard) == 0 {
		r.heard = append(r.heard, outcome(err))
		if e := (*command.Error)(nil); errors.As(err, &e) && e.Kind == command.KindNotFound {
			r.heard[0] = command.OutcomeExpired // it never came to it
		}
	}
	for _, o := range r.heard[1:] {
		if o != r.heard[0] {
			t.Errorf("%s has several outcomes: %v (%s)", r.id, r.heard, r.message)
		}
	}
	want := map[command.Outcome][]int{command.OutcomeOK: {1}, command.OutcomeExpired: {0}, command.OutcomeDenied: {0}, command.OutcomeStartedNoResult: {0, 1}}
	possible, known := want[r.heard[0]]
	if !known {
		t.Errorf("%s ended as %s: %s", r.id, r.heard[0], now)
	}
	if n := len(starts); n > 1 || known && n != possible[0] && n != possible[len(possible)-1] {
		t.Errorf("%s ran %d times; its caller heard %v (%s); the agent says: %s", r.id, n, r.heard, r.message, now)
	}
	for _, at := range starts {
		// The kernel notes hundredths of a second, cut off.
		if late := at.Sub(r.deadline); late > 0 {
			t.Errorf("%s started %v after its deadline", r.id, late)
		}
	}
	return r.heard[0]
}

// readStarts gives when the program of each request was started.
func readStarts(t *testing.T, file string) map[string][]time.Time {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var since unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &since); err != nil {
		t.Fatal(err)
	}
	boot := time.Now().Add(-time.Duration(since.Nano()))
	starts := map[string][]time.Time{}
	for line := range strings.Lines(string(text)) {
		id, stat, _ := strings.Cut(line, " ")
		_, stat, _ = strings.Cut(stat, ") ") // behind the program's name
		fields := strings.Fields(stat)
		if len(fields) < 20 {
			t.Fatalf("a program wrote %q", line)
		}
		ticks, err := strconv.ParseInt(fields[19], 10, 64) // starttime, the 22nd field of all
		if err != nil {
			t.Fatal(err)
		}
		starts[id] = append(starts[id], boot.Add(time.Duration(ticks)*10*time.Millisecond))
	}
	return starts
}

// checkAudit wants the chain whole, and a record of every program that ran.
func checkAudit(t *testing.T, c *client.Client, requests []*request, starts map[string][]time.Time) {
	t.Helper()
	var entries []client.AuditEntry
	missing := func() (ids []string) {
		there := map[string]bool{}
		for _, e := range entries {
			if e.Record.Verb == command.VerbExec {
				there[e.Record.RequestID] = true
			}
		}
		for _, r := range requests {
			if len(starts[r.id]) > 0 && !there[r.id] {
				ids = append(ids, r.id)
			}
		}
		return ids
	}
	testwait.For(t, patience, "an audit record of each program that ran", func() bool {
		var err error
		entries, err = records(c)
		return err == nil && len(missing()) == 0
	})
	for _, gap := range client.CheckChain(entries) {
		t.Errorf("the audit chain is broken: %v", gap)
	}
}

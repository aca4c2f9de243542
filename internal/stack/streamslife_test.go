//go:build linux

package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// raw sends an exec by hand, so that it can be sent again as it is.
func raw(t *testing.T, s *Stack, header command.RequestHeader, request command.ExecRequest) *nats.Msg {
	t.Helper()
	payload, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	msg := &nats.Msg{Subject: command.Subject(dev, command.VerbExec), Header: nats.Header{}, Data: payload}
	header.Write(msg.Header)
	reply, err := s.OperatorConn().RequestMsg(msg, patience)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func header(t *testing.T, s *Stack) command.RequestHeader {
	t.Helper()
	d, err := s.Client().Device(t.Context(), dev)
	if err != nil || d.Status == nil {
		t.Fatalf("the device's status: %+v, %v", d, err)
	}
	return command.RequestHeader{RequestID: command.NewRequestID(), Deadline: time.Now().Add(time.Minute), Instance: d.Status.Instance}
}

func TestExecRunsOnce(t *testing.T) {
	s, _ := upWithPodman(t, UserPass, workload.Policy{}, forever...)
	h := header(t, s)
	request := command.ExecRequest{Container: "web", Argv: []string{"sh", "-c", "echo ran >> /tmp/runs"}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	kinds := map[command.Kind]int{}
	for range 100 {
		wg.Go(func() {
			reply := raw(t, s, h, request)
			e, _ := command.DecodeError(reply.Header, reply.Data)
			mu.Lock()
			defer mu.Unlock()
			if e == nil {
				kinds[""]++
			} else {
				kinds[e.Kind]++
			}
		})
	}
	wg.Wait()
	if kinds[""] == 0 || kinds[""]+kinds[command.KindDuplicate]+kinds[command.KindBusy] != 100 {
		t.Errorf("100 copies ended as %v", kinds)
	}
	if out, _, _ := execute(t, s, client.ExecOptions{Argv: []string{"cat", "/tmp/runs"}}); out != "ran\n" {
		t.Errorf("it ran %d times", strings.Count(out, "ran"))
	}
	r, err := s.Client().Result(t.Context(), dev, h.RequestID)
	if err != nil || r.ExitCode == nil || *r.ExitCode != 0 || r.Verb != command.VerbExec {
		t.Errorf("%+v, %v", r, err)
	}
	// Its result outlives the agent.
	if err := s.StopAgent(dev); err != nil {
		t.Fatal(err)
	}
	if err := s.AddAgent(t.Context(), dev, dev); err != nil {
		t.Fatal(err)
	}
	pings(t, s.Client(), dev)
	if r, err := s.Client().Result(t.Context(), dev, h.RequestID); err != nil || r.ExitCode == nil || *r.ExitCode != 0 {
		t.Errorf("after a restart of the agent: %+v, %v", r, err)
	}
	h.Deadline = time.Now().Add(-time.Second)
	if e := errorOf(raw(t, s, h, request)); e == nil {
		t.Error("a copy after the restart was accepted")
	}
	if _, err := s.Client().Result(t.Context(), dev, command.NewRequestID()); !errors.Is(err, client.ErrFailed) {
		t.Errorf("an unknown request: %v", err)
	}
}

func errorOf(reply *nats.Msg) *command.Error {
	e, _ := command.DecodeError(reply.Header, reply.Data)
	return e
}

// A caller that is cut off asks for the result later.
func TestResultOfALostSession(t *testing.T) {
	s, _ := upWithPodman(t, UserPass, workload.Policy{}, forever...)
	nc, err := s.ConnectAs(t.Context(), "ops")
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(nc, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := newSignalled(io.Discard)
	go func() {
		<-out.ready
		nc.Close()
	}()
	r, err := c.Exec(t.Context(), dev, client.ExecOptions{
		Container: "web", Argv: []string{"sh", "-c", "echo ready; while ! [ -e /tmp/go ]; do sleep 0.01; done; exit 6"}, Stdout: out,
	})
	if !errors.Is(err, client.ErrStartedNoResult) || !strings.Contains(err.Error(), r.RequestID) {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := s.Client().Result(t.Context(), dev, r.RequestID); !errors.Is(err, client.ErrStartedNoResult) {
		t.Errorf("while it runs: %v", err)
	}
	execute(t, s, client.ExecOptions{Argv: []string{"touch", "/tmp/go"}})
	testwait.For(t, patience, "the result", func() bool {
		reply, err := s.Client().Result(t.Context(), dev, r.RequestID)
		return err == nil && reply.ExitCode != nil && *reply.ExitCode == 6
	})
}

// An agent that stops ends its sessions clearly and the processes with them; the
// reader goes on from where it was.
func TestLogsThroughARestartOfTheAgent(t *testing.T) {
	s, _ := upWithPodman(t, UserPass, workload.Policy{}, "sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done")
	var all []string
	since := time.Time{}
	for round := range 3 {
		var got syncbuf.Buffer
		done := make(chan error, 1)
		go func() {
			done <- s.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: &got, Follow: true, Timestamps: true, Since: since})
		}()
		testwait.For(t, patience, "lines", func() bool { return strings.Count(got.String(), "\n") > 20 })
		if err := s.StopAgent(dev); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, client.ErrBusy) {
				t.Fatalf("round %d: %v", round, err)
			}
		case <-time.After(patience):
			t.Fatal("the reader is not told that the agent stops")
		}
		text := got.String()
		text = text[:strings.LastIndexByte(text, '\n')+1] // a line may be cut
		for line := range strings.Lines(text) {
			when, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			at, err := time.Parse(time.RFC3339Nano, when)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			since = at.Add(time.Nanosecond)
			all = append(all, rest)
		}
		if err := s.AddAgent(t.Context(), dev, dev); err != nil {
			t.Fatal(err)
		}
		pings(t, s.Client(), dev)
	}
	for i, line := range all {
		if line != fmt.Sprintf("line %d", i) {
			t.Fatalf("line %d is %q after %q", i, line, all[max(0, i-1)])
		}
	}
}

func TestLogsOfAContainerThatIsReplaced(t *testing.T) {
	s, p := upWithPodman(t, UserPass, workload.Policy{}, "sh", "-c", "echo first; exec sleep 1000000")
	var out, notices syncbuf.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reopened, stayed := make(chan error, 1), make(chan error, 1)
	o := client.LogsOptions{Container: "web", Follow: true, Notice: func(text string) { fmt.Fprintln(&notices, text) }}
	go func() {
		o := o
		o.Stdout, o.Reopen = &out, true
		reopened <- s.Client().Logs(ctx, dev, o)
	}()
	var other syncbuf.Buffer
	go func() {
		o := o
		o.Stdout = &other
		stayed <- s.Client().Logs(ctx, dev, o)
	}()
	testwait.For(t, patience, "the first", func() bool { return out.String() == "first\n" && other.String() == "first\n" })
	list, err := p.Run("ps", "--quiet", "--no-trunc")
	if err != nil {
		t.Fatal(err)
	}
	// Both are there for a moment, as when the agent replaces one.
	p.Service(t, dev, "hello", "web", "sh", "-c", "echo second; exec sleep 1000000")
	if _, err := p.Run("rm", "--force", "--time", "0", list); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "the second", func() bool { return out.String() == "first\nsecond\n" })
	select {
	case err := <-stayed:
		if err != nil || other.String() != "first\n" {
			t.Errorf("without reopen: %q, %v", other.String(), err)
		}
	case <-time.After(patience):
		t.Fatal("a reader that does not ask for the next container goes on")
	}
	if n := notices.String(); !strings.Contains(n, "going on with the new one") || !strings.Contains(n, "not followed") {
		t.Errorf("told: %q", n)
	}
	cancel()
	if err := <-reopened; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPolicy(t *testing.T) {
	p := hostpodman.Start(t)
	p.Service(t, dev, "hello", "web", forever...)
	p.Service(t, dev, "hello", "secret", forever...)
	for name, c := range map[string]struct {
		policy workload.Policy
		act    func(c *client.Client) error
		want   error
	}{
		"verb": {workload.Policy{Verbs: []command.Verb{command.VerbLogs}}, func(c *client.Client) error {
			_, err := c.Exec(t.Context(), dev, client.ExecOptions{Container: "web", Argv: []string{"true"}})
			return err
		}, client.ErrDenied},
		"container": {workload.Policy{Containers: []string{"hello/w*"}}, func(c *client.Client) error {
			return c.Logs(t.Context(), dev, client.LogsOptions{Container: "secret", Stdout: io.Discard})
		}, client.ErrDenied},
		"another container": {workload.Policy{Containers: []string{"hello/w*"}}, func(c *client.Client) error {
			return c.Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: io.Discard})
		}, nil},
		"caller": {workload.Policy{Callers: []string{"alice"}}, func(c *client.Client) error {
			return c.Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: io.Discard})
		}, client.ErrDenied},
		"this caller": {workload.Policy{Callers: []string{"o*"}}, func(c *client.Client) error {
			return c.Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: io.Discard})
		}, nil},
		"duration": {workload.Policy{MaxDuration: 200 * time.Millisecond}, func(c *client.Client) error {
			_, err := c.Exec(t.Context(), dev, client.ExecOptions{Container: "web", Argv: []string{"sleep", "8765432"}})
			if hostpodman.Running("8765432") {
				t.Error("the program goes on")
			}
			return err
		}, client.ErrDenied},
		"idleness": {workload.Policy{IdleTimeout: 500 * time.Millisecond}, func(c *client.Client) error {
			keys, typed := io.Pipe()
			defer typed.Close()
			_, err := c.Shell(t.Context(), dev, client.ShellOptions{Container: "web", Stdin: keys, Stdout: io.Discard})
			return err
		}, client.ErrDenied},
		"sessions": {workload.Policy{MaxSessions: 1}, func(c *client.Client) error {
			out := newSignalled(io.Discard)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = c.Exec(ctx, dev, client.ExecOptions{Container: "web", Argv: []string{"sh", "-c", "echo ready; sleep 1000"}, Stdout: out})
			}()
			<-out.ready
			err := c.Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: io.Discard})
			cancel()
			<-done
			return err
		}, client.ErrBusy},
		"the host, as a user who is nobody": {workload.Policy{Host: true, HostUser: "nobody"}, func(c *client.Client) error {
			var out bytes.Buffer
			r, err := c.Exec(t.Context(), dev, client.ExecOptions{
				Host: true, Argv: []string{"sh", "-c", "id -un; cat; echo err >&2; env; exit 4"}, Stdin: strings.NewReader("typed\n"), Stdout: &out,
			})
			if err == nil && (r.ExitCode != 4 || !strings.HasPrefix(out.String(), "nobody\ntyped\n") || strings.Contains(out.String(), "GOPATH")) {
				t.Errorf("%+v, %q", r, out.String())
			}
			return err
		}, nil},
		"the host, a shell": {workload.Policy{Host: true, HostUser: "nobody"}, func(c *client.Client) error {
			var out syncbuf.Buffer
			r, err := c.Shell(t.Context(), dev, client.ShellOptions{
				Host: true, Argv: []string{"sh"}, Stdin: strings.NewReader("stty size; sleep 4567890 & exit 5\r"), Stdout: &out, Size: command.Resize{Rows: 12, Cols: 34},
			})
			if err == nil && (r.ExitCode != 5 || !strings.Contains(out.String(), "12 34")) {
				t.Errorf("%+v, %q", r, out.String())
			}
			testwait.For(t, patience, "what the shell left to be gone", func() bool { return !hostpodman.Running("4567890") })
			return err
		}, nil},
		"the host, another user": {workload.Policy{Host: true, HostUser: "nobody"}, func(c *client.Client) error {
			_, err := c.Exec(t.Context(), dev, client.ExecOptions{Host: true, User: "root", Argv: []string{"id"}})
			return err
		}, client.ErrRejected},
		"the host, cancelled": {workload.Policy{Host: true, HostUser: "nobody"}, func(c *client.Client) error {
			ctx, cancel := context.WithCancel(t.Context())
			out := newSignalled(io.Discard)
			go func() {
				<-out.ready
				cancel()
			}()
			_, err := c.Exec(ctx, dev, client.ExecOptions{Host: true, Argv: []string{"sh", "-c", "env -i /usr/bin/setsid -f /usr/bin/setsid -f sleep 6543211; sleep 6543210 & echo ready; wait"}, Stdout: out})
			testwait.For(t, patience, "the program to be gone", func() bool { return !hostpodman.Running("6543210") && !hostpodman.Running("6543211") })
			return err
		}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			s := up(t, Options{Devices: 1, Auth: UserPass, RuntimeSocket: p.Socket, Policy: c.policy})
			testwait.For(t, patience, "the status", func() bool {
				d, err := s.Client().Device(t.Context(), dev)
				return err == nil && d.Status != nil
			})
			if err := c.act(s.Client()); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

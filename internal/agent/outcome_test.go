package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/journal"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/testcert"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// Environment of an agent in a process of its own.
const (
	childURL = "AGENT_TEST_URL" // set: this is one
	childDir = "AGENT_TEST_STATE_DIR"
	childRan = "AGENT_TEST_RAN" // file that each exec adds a line to
	childCA  = "AGENT_TEST_CA"
)

// runChild is an agent whose exec never ends.
func runChild() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := New(Options{
		DeviceID: "d1", StateDir: os.Getenv(childDir),
		NATS: natsconn.Config{
			URLs: []string{os.Getenv(childURL)}, TLS: natsconn.TLS{CA: os.Getenv(childCA)},
			Credentials: credentials.Static(credentials.Credential{User: broker.UserDevice, Password: password}),
		},
		Handlers: map[command.Verb]Handler{command.VerbExec: HandlerFunc(func(ctx context.Context, _ *Request) (any, error) {
			f, err := os.OpenFile(os.Getenv(childRan), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				return nil, err
			}
			if _, err := f.WriteString("ran\n"); err != nil {
				return nil, err
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})},
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// startChild starts such an agent and waits until it answers.
func (w *world) startChild(stateDir, ran string) (kill func()) {
	w.t.Helper()
	kill = startProcess(w.t, childURL+"="+w.srv.ClientURL(), childDir+"="+stateDir, childRan+"="+ran)
	testwait.For(w.t, patience, "the agent's process", func() bool {
		_, err := w.ask("d1", command.VerbPing, command.RequestHeader{}, "")
		return err == nil
	})
	return kill
}

func startProcess(t testing.TB, env ...string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	return kill
}

// TestTLSBetweenProcesses: the agent's process checks the server's certificate
// against its CA file and is pinged through TLS; with another CA it stays away.
func TestTLSBetweenProcesses(t *testing.T) {
	cert := testcert.New(t)
	srv, err := broker.Start(t.Context(), broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), TLS: &broker.TLS{CertFile: cert.Cert, KeyFile: cert.Key},
		UserPass: &broker.UserPass{Ops: password, Data: password, Device: password},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	url := "tls://" + srv.Addr().String()
	ops, err := natsconn.Connect(t.Context(), natsconn.Config{
		URLs: []string{url}, TLS: natsconn.TLS{CA: cert.CA}, InboxPrefix: command.InboxPrefix(command.UID(broker.UserOps)),
		Credentials: credentials.Static(credentials.Credential{User: broker.UserOps, Password: password}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ops.Close)
	ping := func() error {
		_, err := ops.Request(command.Subject("d1", command.VerbPing), nil, patience)
		return err
	}
	stranger := testcert.New(t).CA
	stopped := startProcess(t, childURL+"="+url, childCA+"="+stranger, childDir+"="+t.TempDir())
	testwait.For(t, patience, "an attempt that fails", func() bool { return srv.NumClients() == 1 && failedHandshakes(t, srv) > 0 })
	if err := ping(); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("with another CA: %v", err)
	}
	stopped()
	startProcess(t, childURL+"="+url, childCA+"="+cert.CA, childDir+"="+t.TempDir())
	testwait.For(t, patience, "a ping", func() bool { return ping() == nil })
	conns, err := srv.Connz(&natsserver.ConnzOptions{Username: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range conns.Conns {
		if c.TLSVersion == "" {
			t.Errorf("the connection %q is not TLS", c.Name)
		}
	}
}

// failedHandshakes counts the connections that ended while TLS was set up.
func failedHandshakes(t testing.TB, srv *broker.Server) (n int) {
	t.Helper()
	conns, err := srv.Connz(&natsserver.ConnzOptions{State: natsserver.ConnClosed})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range conns.Conns {
		if c.Reason == natsserver.TLSHandshakeError.String() {
			n++
		}
	}
	return n
}

// result asks for the outcome of a request.
func (w *world) result(nc *nats.Conn, device, id string) (command.ResultReply, command.Kind) {
	w.t.Helper()
	reply, err := nc.Request(command.Subject(device, command.VerbResult), fmt.Appendf(nil, `{"request_id":%q}`, id), patience)
	if err != nil {
		w.t.Fatal(err)
	}
	if kind := kindOf(reply); kind != "" {
		return command.ResultReply{}, kind
	}
	r, err := command.DecodeReply[command.ResultReply](reply.Header, reply.Data)
	if err != nil {
		w.t.Fatal(err)
	}
	return r, ""
}

// TestAKilledAgentRunsNothingAgain: an exec is running when the agent's process is
// killed; the next one knows that it started, and no more.
func TestAKilledAgentRunsNothingAgain(t *testing.T) {
	w := newWorld(t)
	dir, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	kill := w.startChild(dir, ran)
	instance := w.ping("d1").Instance
	replies, err := w.ops.SubscribeSync(w.ops.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	var h command.RequestHeader
	send := func() {
		h = w.change(&Agent{instance: instance})
		msg := &nats.Msg{Subject: command.Subject("d1", command.VerbExec), Reply: replies.Subject, Header: nats.Header{}, Data: []byte("{}")}
		h.Write(msg.Header)
		if err := w.ops.PublishMsg(msg); err != nil {
			t.Fatal(err)
		}
	}
	send()
	lines := func() int {
		data, _ := os.ReadFile(ran)
		return bytes.Count(data, []byte("\n"))
	}
	testwait.For(t, patience, "the exec", func() bool {
		// Until the device knows the time it is busy.
		if reply, err := replies.NextMsg(time.Millisecond); err == nil && kindOf(reply) == command.KindBusy {
			send()
		}
		return lines() == 1
	})
	if _, kind := w.result(w.ops, "d1", h.RequestID); kind != command.KindStartedNoResult {
		t.Errorf("result while it runs: %s", kind)
	}
	kill()

	o := w.options("d1")
	o.StateDir = dir
	again := &counting{}
	a := start(t, withHandler(o, command.VerbExec, again))
	h.Instance = a.Instance()
	for range 3 {
		if reply := w.must("d1", command.VerbExec, h, "{}"); kindOf(reply) != command.KindStartedNoResult {
			t.Errorf("the same request: %s", reply.Data)
		}
	}
	if reply := w.must("d1", command.VerbExec, h, `{"argv":["other"]}`); kindOf(reply) != command.KindBadRequest {
		t.Errorf("another payload: %s", reply.Data)
	}
	if _, kind := w.result(w.ops, "d1", h.RequestID); kind != command.KindStartedNoResult {
		t.Errorf("result: %s", kind)
	}
	if _, kind := w.result(w.dial(userWide), "d1", h.RequestID); kind != command.KindNotFound {
		t.Errorf("result for another caller: %s", kind)
	}
	if again.runs.Load() != 0 || lines() != 1 {
		t.Errorf("it ran %d and %d times", lines(), again.runs.Load())
	}
}

// TestTheFirstReplyIsGivenAgainAfterARestart, however often it is asked for.
func TestTheFirstReplyIsGivenAgainAfterARestart(t *testing.T) {
	w := newWorld(t)
	exit := 3
	handler := &counting{}
	o := withHandler(w.options("d1"), command.VerbExec, HandlerFunc(func(ctx context.Context, r *Request) (any, error) {
		_, err := handler.Handle(ctx, r)
		return command.ExecReply{ExitCode: exit, Stdout: []byte("<out>")}, err
	}))
	var h command.RequestHeader
	var first []byte
	for run := range 3 {
		a := start(t, o)
		if run == 0 {
			h = w.change(a.Agent)
		}
		h.Instance = a.Instance()
		for i := range 100 {
			reply := w.must("d1", command.VerbExec, h, "{}")
			if first == nil {
				first = reply.Data
			}
			replayed := reply.Header.Get(command.HeaderReplayed) == "true"
			if kindOf(reply) != "" || !bytes.Equal(reply.Data, first) || replayed != (run > 0 || i > 0) {
				t.Fatalf("run %d, %d: %s replayed %v, want %s", run, i, reply.Data, replayed, first)
			}
		}
		r, kind := w.result(w.ops, "d1", h.RequestID)
		if kind != "" || r.Outcome != command.OutcomeOK || r.ExitCode == nil || *r.ExitCode != exit || r.Verb != command.VerbExec || r.RequestID != h.RequestID {
			t.Errorf("run %d: result %+v %s", run, r, kind)
		}
		// Another caller's request with the same id is another request.
		if run == 2 {
			msg := &nats.Msg{Subject: command.Subject("d1", command.VerbExec), Header: nats.Header{}, Data: []byte("{}")}
			h.Write(msg.Header)
			reply, err := w.dial(userWide).RequestMsg(msg, patience)
			if err != nil || kindOf(reply) != "" || reply.Header.Get(command.HeaderReplayed) != "" {
				t.Errorf("another caller: %v %v", reply, err)
			}
		}
		a.stop()
	}
	if n := handler.runs.Load(); n != 2 {
		t.Errorf("%d runs of two requests", n)
	}
}

// TestTheResultOfASessionComesLater, and survives a restart.
func TestTheResultOfASessionComesLater(t *testing.T) {
	w := newWorld(t)
	sessions := make(chan *Request, 1)
	o := withHandler(w.options("d1"), command.VerbShell, HandlerFunc(func(_ context.Context, r *Request) (any, error) {
		sessions <- r
		return command.SessionReply{Session: "s"}, nil
	}))
	a := start(t, o)
	h, lost := w.change(a.Agent), w.change(a.Agent)
	w.must("d1", command.VerbShell, lost, "{}")
	<-sessions
	w.must("d1", command.VerbShell, h, "{}")
	session := <-sessions
	if _, kind := w.result(w.ops, "d1", h.RequestID); kind != command.KindStartedNoResult {
		t.Errorf("while it runs: %s", kind)
	}
	exit := 7
	session.Ended(&exit, command.NewError(command.KindInternal, "cut off"))
	session.Ended(nil, nil)
	check := func(when string) {
		t.Helper()
		r, kind := w.result(w.ops, "d1", h.RequestID)
		if kind != "" || r.Outcome != command.OutcomeFailed || r.Message != "cut off" || r.ExitCode == nil || *r.ExitCode != exit {
			t.Errorf("%s: %+v %s", when, r, kind)
		}
	}
	check("after its end")
	a.stop()
	start(t, o)
	check("after a restart")
	if _, kind := w.result(w.ops, "d1", lost.RequestID); kind != command.KindStartedNoResult {
		t.Errorf("one that ran when the agent ended: %s", kind)
	}
	if _, kind := w.result(w.ops, "d1", command.NewRequestID()); kind != command.KindNotFound {
		t.Errorf("an unknown one: %s", kind)
	}
	for _, bad := range []string{"", "x"} {
		if _, kind := w.result(w.ops, "d1", bad); kind != command.KindBadRequest {
			t.Errorf("request id %q: %s", bad, kind)
		}
	}
}

// TestTheJournalTellsTheLastOfAnOutcome: the reply to a session and the end of its
// process come from two goroutines; what the next run reads is the later state.
func TestTheJournalTellsTheLastOfAnOutcome(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), journalFile)
	const requests = 2000
	tab := &table{maxLasting: requests, maxBytes: 1 << 20}
	open := func() []journal.Entry {
		t.Helper()
		j, started, damage, err := journal.Open(journal.Options{Path: path, DeviceID: "d1"})
		if err != nil || damage != nil {
			t.Fatal(err, damage)
		}
		tab.journal = j
		return started
	}
	open()
	code := 3
	for n := range requests {
		e, _, refusal := tab.begin(requestKey{"alice", fmt.Sprint(n)}, command.VerbExec, "d", time.Now(), time.Now().Add(time.Minute))
		if refusal != nil {
			t.Fatal(refusal)
		}
		if err := tab.start(e, command.AuditCaller{UID: "alice"}); err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		both.Go(func() {
			if err := tab.finish(e, reply{data: []byte("{}"), session: true}); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			if err := tab.ended(e, &code, nil); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
	}
	if err := tab.journal.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range open() {
		if e.Ended == nil || e.Ended.Open || e.Ended.ExitCode == nil {
			t.Errorf("request %s is kept as %+v", e.ID, e.Ended)
		}
	}
	if err := tab.journal.Close(); err != nil {
		t.Fatal(err)
	}
}

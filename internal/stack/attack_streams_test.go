package stack

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// newHostArena is a system under attack whose device runs programs on the host.
// With a socket of an engine it runs containers too.
func newHostArena(t *testing.T, socket string) *arena {
	t.Helper()
	me, err := user.Current()
	must(t, err)
	a := &arena{log: &recorder{}}
	a.Stack = up(t, Options{
		Devices: 1, Policy: workload.Policy{Host: true, HostUser: me.Username}, RuntimeSocket: socket,
		Logger: slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	testwait.For(t, patience, "the status", func() bool {
		d, err := a.Client().Device(t.Context(), dev)
		return err == nil && d.Status != nil
	})
	a.ops = a.person(t, access.Ops, access.RoleOps)
	return a
}

// opened is a session that was opened by hand.
type opened struct {
	*person
	id, request string
	output      *nats.Subscription
}

// open asks for a session with the given id.
func (a *arena) open(t *testing.T, p *person, id string, request command.ExecRequest) (opened, *nats.Msg) {
	t.Helper()
	sub, err := p.SubscribeSync(command.SessionSubject(dev, p.UID, id))
	must(t, err)
	request.Session, request.Host = &command.Session{ID: id, Credit: command.DefaultExecWindow}, true
	payload, err := json.Marshal(request)
	must(t, err)
	h, headers := header(t, a.Stack), nats.Header{}
	h.Write(headers)
	return opened{p, id, h.RequestID, sub}, p.command(t, dev, command.VerbExec, headers, string(payload))
}

func (o opened) control(t *testing.T, op command.SessionOp, seq, data string) {
	t.Helper()
	msg := &nats.Msg{Subject: command.SessionControlSubject(dev, o.UID, o.id, op), Data: []byte(data)}
	if seq != "" {
		msg.Header = nats.Header{command.HeaderSeq: {seq}}
	}
	must(t, o.PublishMsg(msg))
}

// end is the output of the session and its end.
func (o opened) end(t *testing.T) (out string, end command.SessionEnd) {
	t.Helper()
	for {
		msg, err := o.output.NextMsg(patience)
		must(t, err)
		c, err := command.ReadChunk(msg.Header)
		must(t, err)
		switch {
		case c.End != "":
			o.control(t, command.OpCredit, "", `{"ack":`+strconv.FormatUint(c.Seq, 10)+`,"credit":1}`)
			end, err = command.DecodeSession[command.SessionEnd](msg.Data)
			must(t, err)
			return out, end
		case c.Stream != command.StreamProgress:
			out += string(msg.Data)
		}
	}
}

// foreignSession has somebody with the same role who knows all that
// there is to know of a session.
func foreignSession(t *testing.T) {
	a := newHostArena(t, "")
	id := command.NewSessionID()
	alice, reply := a.open(t, a.ops, id, command.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	if got := outcomeOf(reply); got != "ok" {
		t.Fatalf("%s: %s", got, reply.Data)
	}
	mallory := a.person(t, access.Ops, access.RoleOps)
	viewer := a.person(t, access.Ops, access.RoleViewer)
	for _, p := range []*person{mallory, viewer} {
		for _, op := range []command.SessionOp{command.OpCancel, command.OpIn, command.OpEOF, command.OpCredit, command.OpSignal, command.OpResize} {
			refusesPublish(t, p.Conn, command.SessionControlSubject(dev, alice.UID, id, op))
		}
		refusesSubscribe(t, p.Conn, command.SessionSubject(dev, alice.UID, id), command.SessionSubject(dev, "*", id), "fleet.session.>")
	}
	refusesPublish(t, viewer.Conn, command.Subject(dev, command.VerbExec), command.Subject(dev, command.VerbResult))
	refusesPublish(t, mallory.Conn, command.Subject(dev, command.VerbShell))

	// Under the own uid the id means nothing, and can be had for a session of the own.
	foreign := opened{person: mallory, id: id}
	foreign.control(t, command.OpIn, "1", "mallory")
	foreign.control(t, command.OpCancel, "", "")
	own, reply := a.open(t, mallory, id, command.ExecRequest{Argv: []string{"echo", "own"}})
	if got := outcomeOf(reply); got != "ok" {
		t.Fatalf("%s: %s", got, reply.Data)
	}
	if out, _ := own.end(t); out != "own\n" {
		t.Errorf("%q", out)
	}
	for p, want := range map[*person]string{mallory: "not_found", alice.person: "started_no_result"} {
		if got := outcomeOf(p.command(t, dev, command.VerbResult, nil, `{"request_id":"`+alice.request+`"}`)); got != want {
			t.Errorf("the result of alice's request: %s, want %s", got, want)
		}
	}
	for _, bad := range []string{strings.ToUpper(alice.request), "", "*", strings.Repeat("0", 400_000), alice.request + "\x00"} {
		payload, _ := json.Marshal(command.ResultRequest{RequestID: bad})
		reply := alice.command(t, dev, command.VerbResult, nil, string(payload))
		if got := outcomeOf(reply); got != "bad_request" || len(reply.Data) > 1000 {
			t.Errorf("the result of %.40q: %s, %d bytes", bad, got, len(reply.Data))
		}
	}
	alice.control(t, command.OpIn, "1", "alice")
	alice.control(t, command.OpEOF, "2", "")
	if out, end := alice.end(t); out != "alice" || end.ExitCode == nil || *end.ExitCode != 0 {
		t.Errorf("%q, %+v", out, end)
	}
}

// brokenControl is what the caller of a
// session may send.
func brokenControl(t *testing.T) {
	a := newHostArena(t, "")
	bystander, reply := a.open(t, a.ops, command.NewSessionID(), command.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	if got := outcomeOf(reply); got != "ok" {
		t.Fatalf("%s: %s", got, reply.Data)
	}
	const max = "9223372036854775807"
	for _, row := range []struct {
		op        command.SessionOp
		seq, data string
		ends      bool
	}{
		{command.OpCredit, "", `{"ack":18446744073709551615,"credit":1}`, true},
		{command.OpCredit, "", `{"ack":1,"credit":` + max + `}`, true}, // nothing was sent yet
		{command.OpCredit, "", `{"ack":-1,"credit":1}`, true},
		{command.OpCredit, "", `{`, true},
		{command.OpCredit, "", `{"ack":0,"credit":` + max + `}`, false},
		{command.OpCredit, "", `{"ack":0,"credit":-` + max + `}`, false},
		{command.OpIn, "0", "x", true},
		{command.OpIn, "", "x", true},
		{command.OpIn, "-1", "x", true},
		{command.OpIn, "18446744073709551616", "x", true},
		{command.OpIn, "18446744073709551615", "x", false}, // what is before it is asked for
		{command.OpIn, "1", strings.Repeat("x", command.MaxChunk+1), true},
		{command.OpResize, "", `{"rows":65535,"cols":65535}`, false},
		{command.OpResize, "", `{"rows":-1}`, false},
		{command.OpSignal, "", `{"name":"` + strings.Repeat("K", 10_000) + `"}`, false},
		{command.OpSignal, "", `{"name":"0"}`, false},
		{"nonsense", "", "", false},
	} {
		s, reply := a.open(t, a.ops, command.NewSessionID(), command.ExecRequest{Argv: []string{"cat"}, Stdin: true})
		if got := outcomeOf(reply); got != "ok" {
			t.Fatalf("%s: %s", got, reply.Data)
		}
		s.control(t, row.op, row.seq, row.data)
		if !row.ends {
			s.control(t, command.OpEOF, "1", "")
		}
		_, end := s.end(t)
		if failed := end.Error != nil; failed != row.ends {
			t.Errorf("%s %s %.60s: %+v, error %+v", row.op, row.seq, row.data, end, end.Error)
		}
	}
	bystander.control(t, command.OpIn, "1", "calm")
	bystander.control(t, command.OpEOF, "2", "")
	if out, _ := bystander.end(t); out != "calm" {
		t.Errorf("the bystander got %q", out)
	}
}

// manySessions floods a device with sessions.
func manySessions(t *testing.T) {
	a := newHostArena(t, "")
	var all []opened
	for i := 0; ; i++ {
		s, reply := a.open(t, a.ops, command.NewSessionID(), command.ExecRequest{Argv: []string{"cat"}, Stdin: true})
		got := outcomeOf(reply)
		if got == "busy" {
			break
		}
		if all = append(all, s); got != "ok" || i > 100 {
			t.Fatalf("session %d: %s", i, got)
		}
	}
	other, reply := a.open(t, a.person(t, access.Ops, access.RoleOps), command.NewSessionID(), command.ExecRequest{Argv: []string{"echo", "here"}})
	if got := outcomeOf(reply); got != "ok" {
		t.Fatalf("another caller: %s", got)
	}
	if out, _ := other.end(t); out != "here\n" {
		t.Errorf("another caller got %q", out)
	}
	for _, s := range all {
		s.control(t, command.OpCancel, "", "")
	}
	for _, s := range all {
		s.end(t)
	}
}

// beyondThePolicy is what a caller may try to be more.
func beyondThePolicy(t *testing.T) {
	a := newHostArena(t, "")
	for name, row := range map[string]struct {
		o    client.ExecOptions
		want error
	}{
		"as root":                          {client.ExecOptions{User: "root", Argv: []string{"id"}}, client.ErrRejected},
		"as uid 0":                         {client.ExecOptions{User: "0", Argv: []string{"id"}}, client.ErrRejected},
		"in a container and on the host":   {client.ExecOptions{Container: "web", Argv: []string{"id"}}, client.ErrRejected},
		"an option instead of a program":   {client.ExecOptions{Argv: []string{"-c", "id"}}, nil},
		"a shell string":                   {client.ExecOptions{Argv: []string{"id; id"}}, nil},
		"a zero byte":                      {client.ExecOptions{Argv: []string{"id\x00x"}}, client.ErrRejected},
		"a variable without a name":        {client.ExecOptions{Argv: []string{"id"}, Env: map[string]string{"": "x"}}, client.ErrRejected},
		"two variables in one":             {client.ExecOptions{Argv: []string{"id"}, Env: map[string]string{"A=B": "x"}}, client.ErrRejected},
		"a working directory that is none": {client.ExecOptions{Argv: []string{"id"}, Workdir: "/dev/null"}, nil},
	} {
		var out bytes.Buffer
		row.o.Host, row.o.Stdout = true, &out
		_, err := a.Client().Exec(t.Context(), dev, row.o)
		if err == nil || row.want != nil && !errors.Is(err, row.want) || out.Len() > 0 {
			t.Errorf("%s: %v, output %q", name, err, out.String())
		}
	}
	denied := up(t, Options{Devices: 1})
	testwait.For(t, patience, "the status", func() bool {
		d, err := denied.Client().Device(t.Context(), dev)
		return err == nil && d.Status != nil
	})
	if _, err := denied.Client().Exec(t.Context(), dev, client.ExecOptions{Host: true, Argv: []string{"id"}}); !errors.Is(err, client.ErrDenied) {
		t.Errorf("without a policy: %v", err)
	}
	if _, err := denied.Client().Shell(t.Context(), dev, client.ShellOptions{Host: true, Stdin: strings.NewReader(""), Stdout: io.Discard}); !errors.Is(err, client.ErrDenied) {
		t.Errorf("a shell without a policy: %v", err)
	}
}

// programsOnRecord holds that arguments, environment, input and
// output stay out of logs, audit and status, also where the program cannot run.
func programsOnRecord(t *testing.T) {
	p := hostpodman.Start(t)
	p.Service(t, dev, "hello", "web", forever...)
	a := newHostArena(t, p.Socket)
	const secret = "hunter2hunter2"
	env := map[string]string{"TOKEN": secret}
	for _, argv := range [][]string{
		{"sh", "-c", "cat; echo $TOKEN; echo $0 >&2; exit 3", secret},
		{"mysql --password=" + secret},
		{"/none/mysql --password=" + secret},
		{"/etc/passwd", secret},
	} {
		var out bytes.Buffer
		_, err := a.Client().Exec(t.Context(), dev, client.ExecOptions{Host: true, Argv: argv, Env: env, Stdin: strings.NewReader(secret), Stdout: &out})
		if ran := argv[0] == "sh"; ran != (err == nil) || ran != strings.Contains(out.String(), secret) {
			t.Errorf("%q: %v, %q", argv, err, out.String())
		}
		if _, err := a.Client().Exec(t.Context(), dev, client.ExecOptions{Host: true, Argv: []string{"true"}, Workdir: "/none/" + secret}); err == nil {
			t.Error("a working directory that is not there")
		}
		// What a container engine says of a program that is not there is its own.
		_, err = a.Client().Exec(t.Context(), dev, client.ExecOptions{Container: "web", Argv: argv, Env: env, Stdin: strings.NewReader(secret), Stdout: io.Discard})
		if argv[0] == "sh" && err != nil {
			t.Errorf("%q in a container: %v", argv, err)
		}
	}
	if _, err := a.Client().Exec(t.Context(), dev, client.ExecOptions{Container: "web", Argv: []string{"true"}, User: secret, Workdir: "/" + secret}); err == nil {
		t.Log("the engine takes a user that is not there")
	}
	seen := 0
	testwait.For(t, patience, "the records", func() bool {
		seen = 0
		for e, err := range a.Client().Audit(t.Context(), client.AuditFilter{Device: dev, From: 1}) {
			must(t, err)
			if bytes.Contains(e.Raw, []byte(secret)) {
				t.Fatalf("in the audit: %s", e.Raw)
			}
			if e.Record.Verb == command.VerbExec {
				seen++
			}
		}
		return seen >= 17
	})
	d, err := a.Client().Device(t.Context(), dev)
	must(t, err)
	if status, err := json.Marshal(d); err != nil || bytes.Contains(status, []byte(secret)) {
		t.Errorf("in the status: %s, %v", status, err)
	}
	for line := range strings.Lines(a.log.String()) {
		if strings.Contains(line, secret) {
			t.Errorf("in the log: %s", line)
		}
	}
}

// callersMemory has a device send single bytes with great
// headers to a reader that stands still.
func callersMemory(t *testing.T) {
	a := newHostArena(t, "")
	device := a.signIn(t, "", a.mint(t, deviceUser(dev), issuer.MintOptions{}), command.DeviceInboxPrefix(dev))
	must(t, a.StopAgent(dev))
	const messages, size = 1200, 64 << 10
	sent := make(chan error, 1)
	_, err := device.Subscribe(command.Subscription(dev), func(m *nats.Msg) {
		request, err := command.DecodeRequest[command.LogsRequest](command.VerbLogs, m.Data)
		if err != nil || request.Session == nil {
			return
		}
		reply, _ := json.Marshal(command.SessionReply{Session: request.Session.ID})
		_ = m.Respond(reply)
		uid := command.UID(command.UserName(a.Issuer().URL(), a.Issuer().UserID(adminUser)))
		for i := range messages {
			out := &nats.Msg{Subject: command.SessionSubject(dev, uid, request.Session.ID), Data: []byte("x"), Header: nats.Header{"X": {strings.Repeat("h", size)}}}
			command.Chunk{Seq: uint64(i + 1), Stream: []command.Stream{command.StreamStdout, command.StreamStderr}[i%2]}.Write(out.Header)
			if err = device.PublishMsg(out); err == nil && i%8 == 0 { // no faster than the reader's connection takes it
				err = errors.Join(device.FlushTimeout(patience), a.OperatorConn().FlushTimeout(patience))
			}
			if err != nil {
				break
			}
		}
		sent <- errors.Join(err, device.FlushTimeout(patience))
	})
	must(t, err)
	must(t, device.Flush())
	heap := func() uint64 {
		runtime.GC()
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		return now.HeapAlloc
	}
	before := heap()
	stuck, done := make(chan struct{}), make(chan error, 1)
	var got int
	go func() {
		done <- a.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: writerFunc(func(p []byte) (int, error) {
			<-stuck
			if got += len(p); got >= messages/2 {
				return 0, io.ErrClosedPipe
			}
			return len(p), nil
		}), Stderr: io.Discard})
	}()
	select {
	case err := <-sent:
		must(t, err)
	case err := <-done:
		t.Fatalf("the session ended: %v", err)
	case <-time.After(patience):
		t.Fatal("the device did not send")
	}
	testwait.For(t, patience, "the memory of messages that were read", func() bool { return heap() < before+messages*size/8 })
	close(stuck)
	if err := <-done; err == nil {
		t.Error("the reader got its output whole")
	}
}

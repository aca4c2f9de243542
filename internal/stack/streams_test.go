//go:build linux

package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const dev = "vm-device-00"

// upWithPodman is a system whose one device has a real Podman, with a container
// hello/web that runs argv.
func upWithPodman(t *testing.T, auth Auth, policy workload.Policy, argv ...string) (*Stack, *hostpodman.Podman) {
	t.Helper()
	p := hostpodman.Start(t)
	p.Service(t, dev, "hello", "web", argv...)
	s := up(t, Options{Devices: 1, Auth: auth, RuntimeSocket: p.Socket, Policy: policy})
	testwait.For(t, patience, "the status", func() bool {
		d, err := s.Client().Device(t.Context(), dev)
		return err == nil && d.Status != nil
	})
	return s, p
}

var forever = []string{"sleep", "1000000"}

func execute(t *testing.T, s *Stack, o client.ExecOptions) (out, errs string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	o.Stdout, o.Stderr = &stdout, &stderr
	if o.Container == "" {
		o.Container = "web"
	}
	r, err := s.Client().Exec(t.Context(), dev, o)
	if err != nil {
		t.Fatalf("%v: %v", o.Argv, err)
	}
	return stdout.String(), stderr.String(), r.ExitCode
}

func TestStreams(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		s, p := upWithPodman(t, auth, workload.Policy{}, "sh", "-c", "echo out 1; echo err 1 >&2; sleep 0.3; echo out 2; exec sleep 1000000")
		t.Run("logs", func(t *testing.T) { testLogs(t, s) })
		t.Run("exec", func(t *testing.T) { testExec(t, s) })
		t.Run("stdin", func(t *testing.T) { testStdin(t, s) })
		t.Run("signals and timeouts", func(t *testing.T) { testSignals(t, s) })
		t.Run("shell", func(t *testing.T) { testShell(t, s) })
		t.Run("refusals", func(t *testing.T) { testRefusals(t, s, p) })
		t.Run("reconnects", func(t *testing.T) { testReconnects(t, s) })
		t.Run("audit", func(t *testing.T) { testAudit(t, s) })
	})
}

func testLogs(t *testing.T, s *Stack) {
	var out, errs bytes.Buffer
	testwait.For(t, patience, "the container's output", func() bool {
		out.Reset()
		errs.Reset()
		if err := s.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "hello/web", Stdout: &out, Stderr: &errs}); err != nil {
			t.Fatal(err)
		}
		return out.String() == "out 1\nout 2\n" && errs.String() == "err 1\n"
	})
	out.Reset()
	one := 1
	if err := s.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: &out, Stderr: &out, Tail: &one, Timestamps: true}); err != nil {
		t.Fatal(err)
	}
	when, line, _ := strings.Cut(out.String(), " ")
	if _, err := time.Parse(time.RFC3339Nano, when); err != nil || line != "out 2\n" {
		t.Errorf("the last line with its time is %q", out.String())
	}
}

func testExec(t *testing.T, s *Stack) {
	for name, c := range map[string]struct {
		o         client.ExecOptions
		out, errs string
		code      int
	}{
		"exit code":      {client.ExecOptions{Argv: []string{"sh", "-c", "echo a; echo b >&2; exit 7"}}, "a\n", "b\n", 7},
		"no shell looks": {client.ExecOptions{Argv: []string{"sh", "-c", `printf '%s|' "$@"`, "x", "a b", "$HOME", "", "é"}}, "a b|$HOME||é|", "", 0},
		"environment":    {client.ExecOptions{Argv: []string{"sh", "-c", "echo $A$B"}, Env: map[string]string{"A": "1", "B": "2=3"}}, "12=3\n", "", 0},
		"directory":      {client.ExecOptions{Argv: []string{"sh", "-c", "pwd"}, Workdir: "/tmp"}, "/tmp\n", "", 0},
		"user":           {client.ExecOptions{Argv: []string{"id", "-u"}, User: "nobody"}, "65534\n", "", 0},
		"binary":         {client.ExecOptions{Argv: []string{"sh", "-c", `printf '\0\377\n\r'`}}, "\x00\xff\n\r", "", 0},
		"no input":       {client.ExecOptions{Argv: []string{"cat"}}, "", "", 0},
		"input":          {client.ExecOptions{Argv: []string{"cat"}, Stdin: strings.NewReader("abc")}, "abc", "", 0},
	} {
		out, errs, code := execute(t, s, c.o)
		if out != c.out || errs != c.errs || code != c.code {
			t.Errorf("%s: %q, %q, %d", name, out, errs, code)
		}
	}
	_, errs, code := execute(t, s, client.ExecOptions{Argv: []string{"/nope"}})
	if code != 127 || !strings.Contains(errs, "/nope") {
		t.Errorf("a program that is missing: %d, %q", code, errs)
	}
	// Without a session.
	reply, err := s.Client().Output(t.Context(), dev, client.ExecOptions{Container: "web", Argv: []string{"sh", "-c", "echo a; echo b >&2; exit 3"}})
	if err != nil || string(reply.Stdout) != "a\n" || string(reply.Stderr) != "b\n" || reply.ExitCode != 3 || reply.Truncated {
		t.Errorf("%+v, %v", reply, err)
	}
	reply, err = s.Client().Output(t.Context(), dev, client.ExecOptions{Container: "web", Argv: []string{"sh", "-c", "yes | head -c 1000000"}})
	if err != nil || len(reply.Stdout) != command.MaxExecOutput || !reply.Truncated {
		t.Errorf("%d bytes, truncated %t, %v", len(reply.Stdout), reply.Truncated, err)
	}
}

// testStdin sends 64 MiB through cat and back.
func testStdin(t *testing.T, s *Stack) {
	size := int64(64 << 20)
	if testing.Short() {
		size = 4 << 20
	}
	sent, got := sha256.New(), sha256.New()
	r, err := s.Client().Exec(t.Context(), dev, client.ExecOptions{
		Container: "web", Argv: []string{"cat"}, Stdin: io.TeeReader(io.LimitReader(rand.Reader, size), sent), Stdout: got,
	})
	if err != nil || r.ExitCode != 0 || r.Bytes.Stdout != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%+v, %v; the sums are the same: %t", r, err, bytes.Equal(sent.Sum(nil), got.Sum(nil)))
	}
	// A program that does not read does not stop anything.
	_, _, code := execute(t, s, client.ExecOptions{Argv: []string{"true"}, Stdin: io.LimitReader(rand.Reader, size)})
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// signalled is a writer that closes ready when something is written.
type signalled struct {
	io.Writer
	once  sync.Once
	ready chan struct{}
}

func newSignalled(w io.Writer) *signalled { return &signalled{Writer: w, ready: make(chan struct{})} }

func (w *signalled) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.once.Do(func() { close(w.ready) })
	return n, err
}

func testSignals(t *testing.T, s *Stack) {
	signals := make(chan string, 1)
	out := newSignalled(io.Discard)
	go func() {
		<-out.ready
		signals <- "TERM"
	}()
	r, err := s.Client().Exec(t.Context(), dev, client.ExecOptions{
		Container: "web", Argv: []string{"sh", "-c", `trap "exit 9" TERM; echo ready; while :; do sleep 0.01; done`}, Stdout: out, Signals: signals,
	})
	if err != nil || r.ExitCode != 9 {
		t.Errorf("after SIGTERM: %+v, %v", r, err)
	}
	began := time.Now()
	r, err = s.Client().Exec(t.Context(), dev, client.ExecOptions{Container: "web", Argv: []string{"sleep", "1000"}, Timeout: 100 * time.Millisecond})
	if err != nil || r.ExitCode != 137 || time.Since(began) > 5*time.Second {
		t.Errorf("after its timeout: %+v, %v, %v", r, err, time.Since(began))
	}
	// Cancelled: it and what it started are gone, also what left its session twice
	// and has no parent any more.
	ctx, cancel := context.WithCancel(t.Context())
	out = newSignalled(io.Discard)
	go func() {
		<-out.ready
		cancel()
	}()
	_, err = s.Client().Exec(ctx, dev, client.ExecOptions{
		Container: "web", Argv: []string{"sh", "-c", "setsid -f setsid -f sleep 7654322; sleep 7654321 & echo ready; wait"}, Stdout: out,
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	noProcess(t, "7654321")
	noProcess(t, "7654322")
}

// noProcess waits until no process of this machine has word among its arguments.
func noProcess(t *testing.T, word string) {
	t.Helper()
	testwait.For(t, patience, "the processes to be gone", func() bool { return !hostpodman.Running(word) })
}

func testShell(t *testing.T, s *Stack) {
	keys, typed := io.Pipe()
	var screen syncbuf.Buffer
	resize := make(chan command.Resize, 1)
	done := make(chan error, 1)
	var result client.ExecResult
	go func() {
		var err error
		result, err = s.Client().Shell(t.Context(), dev, client.ShellOptions{
			Container: "web", Stdin: keys, Stdout: &screen, Size: command.Resize{Rows: 33, Cols: 101}, Resize: resize, Term: "vt100",
		})
		done <- err
	}()
	write := func(text string) {
		if _, err := typed.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
	shows := func(text string) {
		t.Helper()
		testwait.For(t, patience, "the screen shows "+text, func() bool { return strings.Contains(screen.String(), text) })
	}
	write("echo $((40+2))-$TERM; stty size\r")
	shows("42-vt100")
	shows("33 101")
	for i := range uint16(200) {
		resize <- command.Resize{Rows: 10 + i%50, Cols: 20 + i}
	}
	resize <- command.Resize{Rows: 44, Cols: 132}
	last := time.Time{}
	testwait.For(t, patience, "the new size", func() bool {
		if time.Since(last) > time.Second {
			last = time.Now()
			write("stty size\r")
		}
		return strings.Contains(screen.String(), "44 132")
	})
	write("sleep 1234567\r")
	testwait.For(t, patience, "the program in the terminal", func() bool { return hostpodman.Running("1234567") })
	write("\x03") // Ctrl-C goes to the remote
	noProcess(t, "1234567")
	write("sleep 2345678 &\r")
	testwait.For(t, patience, "the program in the background", func() bool { return hostpodman.Running("2345678") })
	write("setsid -f setsid -f sleep 2345679\r")
	testwait.For(t, patience, "the program that left the terminal", func() bool { return hostpodman.Running("2345679") })
	write("exit 5\r")
	select {
	case err := <-done:
		if err != nil || result.ExitCode != 5 {
			t.Errorf("%+v, %v", result, err)
		}
	case <-time.After(patience):
		t.Fatalf("the shell does not end; it shows %q", screen.String())
	}
	noProcess(t, "2345678")
	noProcess(t, "2345679")
	typed.Close()
}

func testRefusals(t *testing.T, s *Stack, p *hostpodman.Podman) {
	stopped := p.Service(t, dev, "hello", "stopped", "true")
	testwait.For(t, patience, "the container to end", func() bool {
		out, err := p.Run("inspect", "--format", "{{.State.Running}}", stopped)
		return err == nil && out == "false"
	})
	p.Service(t, dev, "other", "twice", forever...)
	p.Service(t, dev, "hello", "twice", forever...)
	p.Service(t, "vm-device-01", "hello", "foreign", forever...)
	ls := []string{"ls"}
	for name, c := range map[string]struct {
		device string
		o      client.ExecOptions
		want   error
		says   string
	}{
		"no such container":         {dev, client.ExecOptions{Container: "nope", Argv: ls}, client.ErrFailed, "hello/web"},
		"another device's":          {dev, client.ExecOptions{Container: "foreign", Argv: ls}, client.ErrFailed, "no container"},
		"stopped":                   {dev, client.ExecOptions{Container: "stopped", Argv: ls}, client.ErrFailed, "does not run"},
		"none named of several":     {dev, client.ExecOptions{Argv: ls}, client.ErrRejected, "say which container"},
		"not unique":                {dev, client.ExecOptions{Container: "twice", Argv: ls}, client.ErrRejected, "other/twice"},
		"no program":                {dev, client.ExecOptions{Container: "web"}, client.ErrRejected, "argv"},
		"a zero byte":               {dev, client.ExecOptions{Container: "web", Argv: []string{"a\x00b"}}, client.ErrRejected, "zero byte"},
		"a bad name in env":         {dev, client.ExecOptions{Container: "web", Argv: ls, Env: map[string]string{"A=B": ""}}, client.ErrRejected, "env"},
		"the host":                  {dev, client.ExecOptions{Host: true, Argv: ls}, client.ErrDenied, "policy"},
		"a device that never was":   {"vm-device-77", client.ExecOptions{Container: "web", Argv: ls}, client.ErrUnknownDevice, ""},
		"what is no device's id":    {"a.b", client.ExecOptions{Container: "web", Argv: ls}, client.ErrRejected, ""},
		"a window that is too tiny": {dev, client.ExecOptions{Container: "web", Argv: ls, Window: 1}, client.ErrRejected, "window"},
	} {
		_, err := s.Client().Exec(t.Context(), c.device, c.o)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A container that is removed while a program runs in it.
	id := p.Service(t, dev, "hello", "doomed", forever...)
	out := newSignalled(io.Discard)
	go func() {
		<-out.ready
		_, _ = p.Run("rm", "--force", "--time", "0", id)
	}()
	r, err := s.Client().Exec(t.Context(), dev, client.ExecOptions{Container: "doomed", Argv: []string{"sh", "-c", "echo ready; sleep 1000"}, Stdout: out})
	if err == nil && r.ExitCode != 137 || err != nil && !errors.Is(err, client.ErrStartedNoResult) {
		t.Errorf("the container was removed: %+v, %v", r, err)
	}
	// Roles: the broker itself keeps a viewer out.
	nc, err := s.ConnectAs(t.Context(), access.Ops, access.RoleViewer)
	if s.Auth() == UserPass {
		return // one user has all roles
	}
	if err != nil {
		t.Fatal(err)
	}
	viewer, err := client.New(nc, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer viewer.Close()
	began := time.Now()
	if err := viewer.Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: io.Discard}); !errors.Is(err, client.ErrDenied) || time.Since(began) > 3*time.Second {
		t.Errorf("a viewer's logs: %v after %v", err, time.Since(began))
	}
	if _, err := viewer.Exec(t.Context(), dev, client.ExecOptions{Container: "web", Argv: ls}); !errors.Is(err, client.ErrDenied) {
		t.Errorf("a viewer's exec: %v", err)
	}
}

// testReconnects runs a program through a restart of the broker.
func testReconnects(t *testing.T, s *Stack) {
	out := newSignalled(io.Discard)
	sum := sha256.New()
	go func() {
		<-out.ready
		s.StopBroker()
		if err := s.StartBroker(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	r, err := s.Client().Exec(t.Context(), dev, client.ExecOptions{
		Container: "web", Argv: []string{"sh", "-c", "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done"}, Stdout: io.MultiWriter(out, sum),
	})
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	want := sha256.New()
	var text strings.Builder
	for i := range 300 {
		text.WriteString(strconv.Itoa(i) + "\n")
	}
	want.Write([]byte(text.String()))
	if !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Error("the output is not what the program wrote")
	}
}

// testAudit looks at the records of all that the others did.
func testAudit(t *testing.T, s *Stack) {
	var starts, ends map[string]command.AuditRecord
	denied := 0
	testwait.For(t, patience, "an end for each start", func() bool {
		starts, ends, denied = map[string]command.AuditRecord{}, map[string]command.AuditRecord{}, 0
		for e, err := range s.Client().Audit(t.Context(), client.AuditFilter{Device: dev, From: 1}) {
			if err != nil {
				t.Fatal(err)
			}
			switch r := e.Record; {
			case r.Event == command.AuditStart:
				starts[r.Session] = r
			case r.Event == command.AuditEnd:
				ends[r.Session] = r
			case r.Outcome == command.OutcomeDenied:
				denied++
			}
			if bytes.Contains(e.Raw, []byte("1234567")) || bytes.Contains(e.Raw, []byte("2=3")) {
				t.Fatalf("an argument or a variable is in the record %s", e.Raw)
			}
		}
		return len(starts) > 10 && len(ends) == len(starts)
	})
	if denied == 0 {
		t.Error("no denial was recorded")
	}
	withCode := 0
	for session, end := range ends {
		start, ok := starts[session]
		if !ok || start.RequestID != end.RequestID || start.PayloadSHA256 != end.PayloadSHA256 || start.Caller != end.Caller || end.Bytes == nil {
			t.Errorf("start %+v, end %+v", start, end)
		}
		if end.ExitCode != nil && *end.ExitCode == 7 && end.Bytes.Stdout == 2 && end.Bytes.Stderr == 2 {
			withCode++
		}
	}
	if withCode != 1 {
		t.Errorf("%d records of the program that ended with 7", withCode)
	}
}

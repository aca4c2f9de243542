//go:build linux

package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/user"
	"path/filepath"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// onHost are the options of an agent that runs programs as this test's user, and
// a caller of it.
func (w *world) onHost() (Options, *client.Client) {
	w.t.Helper()
	me, err := user.Current()
	if err != nil {
		w.t.Fatal(err)
	}
	o := w.options("d1")
	o.Policy = workload.Policy{Host: true, HostUser: me.Username}
	c, err := client.New(w.dial(broker.UserOps), client.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return o, c
}

// noise is a reader of n bytes that are the same for the same seed.
func noise(n int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), n) }

// A program's input and output go on whole while the agent changes connections
// and the caller's breaks.
func TestASessionOutlivesRenewals(t *testing.T) {
	const size = 24 << 20
	w := newWorld(t)
	o, c := w.onHost()
	o.RenewInterval = 50 * time.Millisecond
	a := start(t, o)
	w.awaitStatus("d1", "a status", func(command.Status) bool { return true })
	sent, got := sha256.New(), sha256.New()
	done := make(chan struct{})
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
				_ = w.ops.ForceReconnect()
			}
		}
	}()
	r, err := c.Exec(t.Context(), "d1", client.ExecOptions{
		Host: true, Argv: []string{"cat"}, Stdin: io.TeeReader(&paced{r: noise(size)}, sent), Stdout: got,
	})
	close(done)
	<-broken
	if err != nil || r.ExitCode != 0 || r.Bytes.Stdout != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%+v, %v", r, err)
	}
	if n := a.connects.Load(); n < 5 {
		t.Errorf("the agent connected only %d times", n)
	}
}

// paced reads a piece at a time, with a pause, so that the whole takes a while.
type paced struct{ r io.Reader }

func (p *paced) Read(b []byte) (int, error) {
	<-time.After(2 * time.Millisecond)
	return p.r.Read(b[:min(len(b), 48<<10)])
}

func TestPolicyDenialsAreRecorded(t *testing.T) {
	w := newWorld(t)
	o, c := w.onHost()
	o.Policy = workload.Policy{Verbs: []command.Verb{command.VerbLogs}}
	start(t, o)
	w.awaitStatus("d1", "a status", func(command.Status) bool { return true })
	_, err := c.Exec(t.Context(), "d1", client.ExecOptions{Host: true, Argv: []string{"secret-argument"}})
	if !errors.Is(err, client.ErrDenied) {
		t.Fatal(err)
	}
	for _, r := range w.awaitAudit("d1", 1) {
		if r.Verb == command.VerbExec && r.Outcome == command.OutcomeDenied && r.Kind == command.KindDenied && r.Reason != "" && r.Caller.User == broker.UserOps {
			return
		}
	}
	t.Errorf("records %+v", w.audit("d1"))
}

// Nothing of what is run, typed, printed or set is in the log or on the disk.
func TestNothingOfASessionIsLogged(t *testing.T) {
	w := newWorld(t)
	o, c := w.onHost()
	start(t, o)
	w.awaitStatus("d1", "a status", func(command.Status) bool { return true })
	var out bytes.Buffer
	r, err := c.Exec(t.Context(), "d1", client.ExecOptions{
		Host: true, Argv: []string{"sh", "-c", "cat; echo $TOKEN", "zz-argument"}, Env: map[string]string{"TOKEN": "zz-variable"},
		Stdin: bytes.NewReader([]byte("zz-input\n")), Stdout: &out,
	})
	if err != nil || out.String() != "zz-input\nzz-variable\n" {
		t.Fatalf("%+v, %q, %v", r, out.String(), err)
	}
	if bytes.Contains([]byte(w.log.String()), []byte("zz-")) {
		t.Error("the log shows something of the session")
	}
	for _, record := range w.awaitAudit("d1", 2) {
		if record.Event == command.AuditEnd && (record.Bytes == nil || record.Bytes.Stdin != 9 || record.Bytes.Stdout != 21 || record.ExitCode == nil) {
			t.Errorf("the end is recorded as %+v", record.AuditRecord)
		}
	}
	files(t, o.StateDir, func(name string, data []byte) {
		if bytes.Contains(data, []byte("zz-")) {
			t.Errorf("%s shows something of the session", name)
		}
	})
}

// files hands on every file below dir.
func files(t *testing.T, dir string, f func(name string, data []byte)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		f(path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

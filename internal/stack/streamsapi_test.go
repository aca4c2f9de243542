//go:build linux

package stack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// Where the agent cannot read the engine's log file, output comes by the engine's
// API, whose times are of whole seconds: a follower goes through restarts of the
// container without a line missing or twice there all the same.
func TestLogsByTheEnginesAPIThroughRestarts(t *testing.T) {
	// Its storage is in a mount namespace of its own.
	p := podmantest.Start(t, podmantest.Options{StorageBytes: 256 << 20})
	rootfs, err := hostpodman.RootFS()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(file, rootfs, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := p.Run(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("import", file, hostpodman.Image)
	id := run("run", "--detach", "--network", "none", "--name", "fleet_"+dev+"_hello_web_1", "--stop-signal", "KILL",
		"--label", "dev.harmony.fleet.device="+dev, "--label", "dev.harmony.fleet.deployment=hello", "--label", "dev.harmony.fleet.service=web",
		hostpodman.Image, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; echo err $i >&2; sleep 0.01; done")
	if path := run("inspect", "--format", "{{.HostConfig.LogConfig.Path}}", id); path != "" {
		if _, err := os.Stat(path); err == nil {
			t.Fatalf("the agent would read the file %s", path)
		}
	}
	s := up(t, Options{Devices: 1, Auth: UserPass, RuntimeSocket: p.Socket})
	testwait.For(t, patience, "the status", func() bool {
		d, err := s.Client().Device(t.Context(), dev)
		return err == nil && d.Status != nil
	})
	var out, errs, notices syncbuf.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- s.Client().Logs(ctx, dev, client.LogsOptions{
			Container: "web", Follow: true, Reopen: true, Stdout: &out, Stderr: &errs, Notice: func(text string) { _, _ = notices.Write([]byte(text + "\n")) },
		})
	}()
	for round := range 3 {
		seen := len(out.String())
		testwait.For(t, patience, "lines", func() bool { return len(out.String()) > seen+100 })
		run("restart", "--time", "0", id)
		testwait.For(t, patience, "the notice", func() bool { return strings.Count(notices.String(), "started again") > round })
	}
	run("stop", "--time", "0", id)
	var wantOut, wantErrs syncbuf.Buffer
	cmd := p.Command(t.Context(), "logs", id)
	cmd.Stdout, cmd.Stderr = &wantOut, &wantErrs
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for out.String() != wantOut.String() || errs.String() != wantErrs.String() {
		if time.Now().After(deadline) {
			t.Fatalf("stdout and stderr have %d and %d bytes, of %d and %d; they are the same up to %d and %d", len(out.String()), len(errs.String()),
				len(wantOut.String()), len(wantErrs.String()), common(out.String(), wantOut.String()), common(errs.String(), wantErrs.String()))
		}
		<-time.After(testwait.Interval)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// Times are shown as from the file.
	var timed syncbuf.Buffer
	one := 1
	if err := s.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Tail: &one, Stdout: &timed, Stderr: &timed, Timestamps: true}); err != nil {
		t.Fatal(err)
	}
	when, _, _ := strings.Cut(timed.String(), " ")
	if _, err := time.Parse("2006-01-02T15:04:05.000000000Z", when); err != nil {
		t.Errorf("a line with its time is %q", timed.String())
	}
}

// common is how much of a and b is the same, from the beginning.
func common(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

//go:build linux

package stack

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// benchUp is upWithPodman for a benchmark.
func benchUp(b *testing.B, argv ...string) (*Stack, *hostpodman.Podman, string) {
	b.Helper()
	p := hostpodman.Start(b)
	id := p.Service(b, dev, "hello", "web", argv...)
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	s, err := Start(ctx, Options{Devices: 1, Port: AnyPort, RuntimeSocket: p.Socket, Policy: workload.Policy{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	testwait.For(b, patience, "the status", func() bool {
		d, err := s.Client().Device(b.Context(), dev)
		return err == nil && d.Status != nil
	})
	return s, p, id
}

// BenchmarkLogs reads the log of one container, 50 MB in lines of 100 bytes, by
// way of the fleet and with podman logs, in turn.
func BenchmarkLogs(b *testing.B) {
	const size = 500_000 * 101
	s, p, id := benchUp(b, "sh", "-c", "yes "+strings.Repeat("x", 100)+" | head -n 500000; echo over >&2; exec sleep 1000000")
	testwait.For(b, patience, "the container's output", func() bool {
		var errs syncbuf.Buffer
		return s.Client().Logs(b.Context(), dev, client.LogsOptions{Container: "web", Stderr: &errs}) == nil && errs.String() != ""
	})
	var ours, theirs time.Duration
	b.SetBytes(size)
	for range b.N {
		var n counter
		began := time.Now()
		if err := s.Client().Logs(b.Context(), dev, client.LogsOptions{Container: "web", Stdout: &n}); err != nil || n != size {
			b.Fatalf("%d bytes of %d: %v", n, size, err)
		}
		ours += time.Since(began)
		began = time.Now()
		cmd := p.Command(b.Context(), "logs", id)
		var m counter
		cmd.Stdout = &m
		if err := cmd.Run(); err != nil || m != size {
			b.Fatalf("podman logs: %d bytes of %d: %v", m, size, err)
		}
		theirs += time.Since(began)
	}
	b.ReportMetric(float64(b.N)*size/1e6/ours.Seconds(), "fleet-MB/s")
	b.ReportMetric(float64(b.N)*size/1e6/theirs.Seconds(), "podman-MB/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "times-podman")
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// BenchmarkExec runs true by way of the fleet, with and without a session, and
// with podman exec, in turn.
func BenchmarkExec(b *testing.B) {
	s, p, id := benchUp(b, forever...)
	var ours, reply, theirs []time.Duration
	timed := func(list *[]time.Duration, f func() error) {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		*list = append(*list, time.Since(began))
	}
	o := client.ExecOptions{Container: "web", Argv: []string{"true"}}
	for range b.N {
		timed(&ours, func() error {
			_, err := s.Client().Exec(b.Context(), dev, o)
			return err
		})
		timed(&reply, func() error {
			_, err := s.Client().Output(b.Context(), dev, o)
			return err
		})
		timed(&theirs, func() error { return p.Command(b.Context(), "exec", id, "true").Run() })
	}
	b.ReportMetric(ms(percentile(ours, 50)), "fleet-p50-ms")
	b.ReportMetric(ms(percentile(reply, 50)), "sessionless-p50-ms")
	b.ReportMetric(ms(percentile(theirs, 50)), "podman-p50-ms")
	b.ReportMetric(percentile(ours, 50).Seconds()/percentile(theirs, 50).Seconds(), "times-podman")
}

// BenchmarkShellEcho is the time from a key to its echo on the screen.
func BenchmarkShellEcho(b *testing.B) {
	s, _, _ := benchUp(b, forever...)
	keys, typed := io.Pipe()
	echoed := make(chan string, 1024)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Client().Shell(ctx, dev, client.ShellOptions{Container: "web", Argv: []string{"cat"}, Stdin: keys, Stdout: writerFunc(func(p []byte) (int, error) {
			echoed <- string(p)
			return len(p), nil
		})})
		done <- err
	}()
	key := func(text string) {
		if _, err := typed.Write([]byte(text)); err != nil {
			b.Fatal(err)
		}
		select {
		case <-echoed:
		case <-time.After(patience):
			b.Fatal("no echo")
		}
	}
	key("x")
	var all []time.Duration
	for range b.N {
		began := time.Now()
		key("x")
		all = append(all, time.Since(began))
	}
	cancel()
	<-done
	typed.Close()
	b.ReportMetric(ms(percentile(all, 50)), "p50-ms")
	b.ReportMetric(ms(percentile(all, 99)), "p99-ms")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// BenchmarkCancel is the time from cancelling an exec to its process being gone.
func BenchmarkCancel(b *testing.B) {
	s, _, _ := benchUp(b, forever...)
	var all []time.Duration
	for range b.N {
		ctx, cancel := context.WithCancel(b.Context())
		out := newSignalled(io.Discard)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = s.Client().Exec(ctx, dev, client.ExecOptions{Container: "web", Argv: []string{"sh", "-c", "echo ready; exec sleep 5647382"}, Stdout: out})
		}()
		<-out.ready
		var pid int
		testwait.For(b, patience, "the process", func() bool { pid = hostpodman.PID("5647382"); return pid != 0 })
		began := time.Now()
		cancel()
		for unix.Kill(pid, 0) == nil {
			if time.Since(began) > patience {
				b.Fatal("the process goes on")
			}
			time.Sleep(200 * time.Microsecond)
		}
		all = append(all, time.Since(began))
		<-done
	}
	b.ReportMetric(ms(percentile(all, 50)), "p50-ms")
	b.ReportMetric(ms(slices.Max(all)), "max-ms")
}

func percentile(all []time.Duration, p int) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, len(all)*p/100)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

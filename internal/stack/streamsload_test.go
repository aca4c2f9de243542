//go:build linux

package stack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// counted checks that lines are the numbers from 1 on.
type counted struct {
	mu   sync.Mutex
	rest []byte
	n    int
	bad  string
}

func (c *counted) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest = append(c.rest, p...)
	for {
		line, rest, ok := bytes.Cut(c.rest, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		if c.n++; string(line) != strconv.Itoa(c.n) && c.bad == "" {
			c.bad = "line " + strconv.Itoa(c.n) + " is " + strconv.Quote(string(line))
		}
		c.rest = rest
	}
}

func (c *counted) state() (n int, bad string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.bad
}

// A container writes as fast as it can while its reader hardly takes anything:
// nothing grows on either end, which share this process, and when the reader
// catches up not a byte is missing.
func TestASlowReaderOfAFastContainer(t *testing.T) {
	const lines = 3_000_000
	s, _ := upWithPodman(t, UserPass, workload.Policy{}, "sh", "-c", "seq 1 3000000; exec sleep 1000000")
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var got counted
	slow := time.Now().Add(10 * time.Second)
	if s := os.Getenv("FLEET_SLOW_READER"); s != "" { // tools/test says "1m"
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		slow = time.Now().Add(d)
	}
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := s.Client().Logs(ctx, dev, client.LogsOptions{Container: "web", Stdout: writer, Follow: true})
		writer.CloseWithError(err)
		done <- err
	}()
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	kilobyte := make([]byte, 10) // each 10 ms: 1 KB a second
	for time.Now().Before(slow) {
		n, err := io.ReadFull(reader, kilobyte)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = got.Write(kilobyte[:n])
		<-pace.C
	}
	runtime.GC()
	runtime.ReadMemStats(&during)
	if grown := int64(during.HeapInuse) - int64(before.HeapInuse); grown > 16<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&got, reader)
	}()
	testwait.For(t, 3*patience, "the reader to catch up", func() bool { n, _ := got.state(); return n >= lines })
	if n, bad := got.state(); n != lines || bad != "" {
		t.Errorf("%d lines; %s", n, bad)
	}
	cancel()
	<-done
	<-copied
}

func TestManyReaders(t *testing.T) {
	const readers = 100
	s, _ := upWithPodman(t, UserPass, workload.Policy{MaxSessions: readers, MaxSessionsPerCaller: readers},
		"sh", "-c", "seq 1 1000; while ! [ -e /tmp/go ]; do sleep 0.05; done; seq 1001 2000; exec sleep 1000000")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all := make([]counted, readers)
	ends := make(chan error, readers)
	for i := range all {
		go func() {
			for { // only so many requests of one caller are being opened at a time
				err := s.Client().Logs(ctx, dev, client.LogsOptions{Container: "web", Stdout: &all[i], Follow: true})
				if !errors.Is(err, client.ErrBusy) {
					ends <- err
					return
				}
			}
		}()
	}
	reached := func(want int) func() bool {
		return func() bool {
			for i := range all {
				if n, _ := all[i].state(); n < want {
					return false
				}
			}
			return true
		}
	}
	testwait.For(t, 3*patience, "what was there", func() bool {
		select {
		case err := <-ends:
			t.Fatal(err)
		default:
		}
		return reached(1000)()
	})
	// All places are taken.
	if err := s.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: io.Discard}); !errors.Is(err, client.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	// And ping has its own.
	if _, err := s.Client().Ping(t.Context(), dev); err != nil {
		t.Error(err)
	}
	cancelOne := client.ExecOptions{Container: "web", Argv: []string{"touch", "/tmp/go"}}
	if _, err := s.Client().Output(t.Context(), dev, cancelOne); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, 3*patience, "what is new", reached(2000))
	cancel()
	for range readers {
		if err := <-ends; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	for i := range all {
		if n, bad := all[i].state(); n != 2000 || bad != "" {
			t.Errorf("reader %d: %d lines; %s", i, n, bad)
		}
	}
}

// A line of 10 MB, of characters that take three bytes each, so that many of them
// are split between two chunks.
func TestALongLine(t *testing.T) {
	const size = 10 << 20
	s, _ := upWithPodman(t, UserPass, workload.Policy{}, "sh", "-c", "yes € | tr -d '\\n' | head -c 10485759; echo; echo over; exec sleep 1000000")
	var out bytes.Buffer
	testwait.For(t, patience, "the container's output", func() bool {
		out.Reset()
		if err := s.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		return strings.HasSuffix(out.String(), "over\n")
	})
	line, err := bufio.NewReaderSize(&out, 2*size).ReadString('\n')
	if err != nil || len(line) != size || !utf8.ValidString(line) || strings.Trim(line, "€\n") != "" {
		t.Errorf("the line has %d bytes, valid %t, %v", len(line), utf8.ValidString(line), err)
	}
}

// 1 GiB through a program and back; an eighth of it with the race detector, which
// makes it ten times slower. tools/test runs both.
func TestALotOfInput(t *testing.T) {
	size := int64(1 << 30)
	if raceEnabled {
		size /= 8
	}
	s, _ := upWithPodman(t, UserPass, workload.Policy{}, forever...)
	sent, got := sha256.New(), sha256.New()
	began := time.Now()
	r, err := s.Client().Exec(t.Context(), dev, client.ExecOptions{
		Container: "web", Argv: []string{"cat"}, Stdin: io.TeeReader(io.LimitReader(rand.Reader, size), sent), Stdout: got,
	})
	if err != nil || r.Bytes.Stdout != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("%d MiB there and back in %v", size>>20, time.Since(began).Round(time.Millisecond))
}

// A program that writes as fast as it can to a reader who pauses waits for it,
// in a container and on the host.
func TestASlowReaderOfAProgram(t *testing.T) {
	const lines = 2_000_000
	s, _ := upWithPodman(t, UserPass, workload.Policy{Host: true, HostUser: "nobody"}, forever...)
	for name, o := range map[string]client.ExecOptions{
		"container": {Container: "web", Argv: []string{"seq", "1", "2000000"}},
		"host":      {Host: true, Argv: []string{"seq", "1", "2000000"}},
	} {
		var got counted
		pauses := 3
		o.Stdout = writerFunc(func(p []byte) (int, error) {
			if n, _ := got.state(); n > (4-pauses)*lines/5 && pauses > 0 {
				pauses--
				<-time.After(time.Second) // the reader looks away
			}
			return got.Write(p)
		})
		r, err := s.Client().Exec(t.Context(), dev, o)
		if n, bad := got.state(); err != nil || r.ExitCode != 0 || n != lines || bad != "" {
			t.Errorf("%s: %+v, %v; %d lines; %s", name, r, err, n, bad)
		}
	}
	// A program that has ended while its reader looks away: what is still on the way
	// comes.
	var got counted
	first := true
	r, err := s.Client().Exec(t.Context(), dev, client.ExecOptions{Host: true, Argv: []string{"seq", "1", "25000"}, Window: client.MinStreamWindow, Stdout: writerFunc(func(p []byte) (int, error) {
		if first {
			first = false
			<-time.After(1500 * time.Millisecond)
		}
		return got.Write(p)
	})})
	if n, bad := got.state(); err != nil || r.ExitCode != 0 || n != 25000 || bad != "" {
		t.Errorf("%+v, %v; %d lines; %s", r, err, n, bad)
	}
}

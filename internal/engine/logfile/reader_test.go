//go:build linux

package logfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sample = `2026-01-02T15:04:05.000000001+00:00 stdout F one
2026-01-02T15:04:05.000000002+00:00 stderr F oops
2026-01-02T15:04:05.000000003+00:00 stdout P two,
2026-01-02T16:04:05.000000004+01:00 stdout F  still two
2026-01-02T15:04:05.000000005+00:00 stdout F
2026-01-02T15:04:06.000000006+00:00 stdout F ` + "\xff\x00\n"

// withSpace is sample as conmon writes it: also an empty line has a space.
var withSpace = strings.Replace(sample, "000000005+00:00 stdout F\n", "000000005+00:00 stdout F \n", 1)

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ctr.log")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string, o Options) (out, errs string) {
	t.Helper()
	r, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = r.Copy(t.Context(), nil, func(s Stream, p []byte) error {
		if s == Stderr {
			errs += string(p)
		} else {
			out += string(p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, errs
}

func at(ns int) time.Time { return time.Date(2026, 1, 2, 15, 4, 5, ns, time.UTC) }

func TestRead(t *testing.T) {
	n := func(i int) *int { return &i }
	path := write(t, withSpace+"2026-01-02T15:04:07+00:00 stdout F a line that is being wri")
	for name, c := range map[string]struct {
		o         Options
		out, errs string
	}{
		"all":           {Options{Stdout: true, Stderr: true}, "one\ntwo, still two\n\n\xff\x00\n", "oops\n"},
		"stderr":        {Options{Stderr: true}, "", "oops\n"},
		"tail":          {Options{Stdout: true, Tail: n(3)}, "two, still two\n\n\xff\x00\n", ""},
		"tail of one":   {Options{Stdout: true, Tail: n(1)}, "\xff\x00\n", ""},
		"tail of none":  {Options{Stdout: true, Tail: n(0)}, "", ""},
		"tail of more":  {Options{Stdout: true, Stderr: true, Tail: n(99)}, "one\ntwo, still two\n\n\xff\x00\n", "oops\n"},
		"tail, stderr":  {Options{Stderr: true, Tail: n(1)}, "", "oops\n"},
		"since":         {Options{Stdout: true, Since: at(5)}, "\n\xff\x00\n", ""},
		"until":         {Options{Stdout: true, Stderr: true, Until: at(3)}, "one\n", "oops\n"},
		"both":          {Options{Stdout: true, Since: at(3), Until: at(5)}, "two, still two\n", ""},
		"with the time": {Options{Stdout: true, Until: at(5), Timestamps: true}, "2026-01-02T15:04:05.000000001Z one\n2026-01-02T15:04:05.000000003Z two, still two\n", ""},
	} {
		if out, errs := read(t, path, c.o); out != c.out || errs != c.errs {
			t.Errorf("%s: %q, %q", name, out, errs)
		}
	}
	if out, errs := read(t, write(t, ""), Options{Stdout: true, Tail: n(3)}); out != "" || errs != "" {
		t.Errorf("an empty file: %q, %q", out, errs)
	}
}

// batches is a log as conmon writes it of a program that prints many lines at
// once: those have one stamp.
func batches() string {
	var b strings.Builder
	n := 0
	for i, count := range []int{1, 3, 1, 500, 2, 1, 1000, 1} {
		for j := range count {
			name, kind := "stdout", "F"
			if n%7 == 3 {
				name = "stderr"
			}
			if n%11 == 5 && j+1 < count {
				kind = "P"
			}
			// The next stamp is less than so many nanoseconds later, at times.
			fmt.Fprintf(&b, "2026-01-02T15:04:05.%09d+00:00 %s %s %d\n", 100*i, name, kind, n)
			n++
		}
	}
	return b.String()
}

// Whatever line a reader was cut off after, it goes on with the next one, by the
// time that it saw.
func TestGoingOnFromALine(t *testing.T) {
	path := write(t, batches())
	var texts []string
	var whens []time.Time
	o := Options{Stdout: true, Stderr: true, Timestamps: true}
	lines := func(o Options) {
		t.Helper()
		texts, whens = nil, nil
		out, errs := read(t, path, o)
		for line := range strings.Lines(out + errs) {
			when, text, _ := strings.Cut(line, " ")
			at, err := time.Parse(stampLayout, when)
			if err != nil {
				t.Fatal(err)
			}
			texts, whens = append(texts, text), append(whens, at)
		}
	}
	for _, stream := range []Options{{Stdout: true}, {Stderr: true}} {
		o.Stdout, o.Stderr, o.Since, o.Tail = stream.Stdout, stream.Stderr, time.Time{}, nil
		lines(o)
		all, at := texts, whens
		if len(all) < 150 {
			t.Fatalf("%d lines", len(all))
		}
		for i := range all {
			if i > 0 && !at[i].After(at[i-1]) {
				t.Fatalf("line %d is of %v, the one before of %v", i, at[i], at[i-1])
			}
			if i%41 > 1 {
				continue
			}
			o.Since, o.Tail = at[i].Add(time.Nanosecond), nil
			if lines(o); strings.Join(texts, "") != strings.Join(all[i+1:], "") {
				t.Fatalf("after line %d of %d come %d: %.200q", i, len(all), len(texts), texts)
			}
			o.Since = at[i]
			if lines(o); strings.Join(texts, "") != strings.Join(all[i:], "") {
				t.Fatalf("from line %d of %d come %d", i, len(all), len(texts))
			}
		}
		// Near the end, which is found backwards, the times are the same, but where a
		// stamp is overtaken by lines of the one before.
		for _, n := range []int{1, 2, 30, 100} {
			o.Since, o.Tail = time.Time{}, &n
			if lines(o); strings.Join(texts, "") != strings.Join(all[len(all)-n:], "") {
				t.Fatalf("a tail of %d is %q", n, texts)
			}
			for i, at0 := range at[len(at)-n:] {
				if d := at0.Sub(whens[i]); d < 0 || d > time.Microsecond {
					t.Fatalf("in a tail of %d line %d is of %v, else of %v", n, i, whens[i], at0)
				}
			}
		}
	}
}

// What a later read goes on from is the last part of a line, whose rest may be
// another run's.
func TestAfter(t *testing.T) {
	text := batches()
	cut := strings.Index(text, " P ")
	cut += strings.IndexByte(text[cut:], '\n') + 1
	path := write(t, text[:cut])
	r, err := Open(path, Options{Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got strings.Builder
	keep := func(_ Stream, p []byte) error { got.Write(p); return nil }
	if err := r.Copy(t.Context(), nil, keep); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := Open(path, Options{Stdout: true, Stderr: true, After: r.Last()})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.Copy(t.Context(), nil, keep); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for line := range strings.Lines(text) {
		l, err := parse([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		want.Write(l.text)
	}
	if got.String() != want.String() {
		t.Errorf("%d bytes of %d", got.Len(), want.Len())
	}
}

func TestAnotherFormatIsRefused(t *testing.T) {
	for _, text := range []string{`{"log":"x\n","stream":"stdout","time":"2026-01-02T15:04:05Z"}` + "\n", "plain\n", "no line yet"} {
		if _, err := Open(write(t, text), Options{Stdout: true}); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{Stdout: true}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Lines of any length are found from the end as well as from the beginning.
func TestTailOfManyLines(t *testing.T) {
	var text strings.Builder
	var lines []string
	for i := range 5000 {
		line := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", i%300))
		lines = append(lines, line)
		fmt.Fprintf(&text, "2026-01-02T15:04:05.%09d+00:00 stdout F %s", i, line)
		if i%3 == 0 {
			fmt.Fprintf(&text, "2026-01-02T15:04:05.%09d+00:00 stderr F noise\n", i)
		}
	}
	path := write(t, text.String())
	for _, n := range []int{1, 2, 299, 1000, 4999, 5000, 5001} {
		if out, _ := read(t, path, Options{Stdout: true, Tail: &n}); out != strings.Join(lines[max(0, 5000-n):], "") {
			t.Errorf("the last %d lines are %d bytes", n, len(out))
		}
	}
}

// follower follows a file in the background.
type follower struct {
	mu    sync.Mutex
	text  strings.Builder
	done  chan error
	watch *watch
}

func (f *follower) got() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

func follow(t *testing.T, path string, running func(context.Context) (bool, error), hold <-chan struct{}) *follower {
	t.Helper()
	r, err := Open(path, Options{Stdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{done: make(chan error, 1), watch: r.news}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		err := r.Copy(ctx, running, func(_ Stream, p []byte) error {
			if hold != nil {
				<-hold
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.text.Write(p)
			return nil
		})
		r.Close()
		f.done <- err
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-f.done:
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
	return f
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func entry(text string) string { return "2026-01-02T15:04:05.000000001+00:00 stdout F " + text + "\n" }

// rotate does what conmon does with a log that became too large.
func rotate(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func alive(context.Context) (bool, error) { return true, nil }

func TestFollow(t *testing.T) {
	path := write(t, entry("0"))
	f := follow(t, path, alive, nil)
	want := "0\n"
	for i := 1; i < 100; i++ {
		text := entry(fmt.Sprint(i))
		switch {
		case i%10 == 0:
			rotate(t, path, text)
		case i%3 == 0: // in two parts
			appendTo(t, path, text[:20])
			appendTo(t, path, text[20:])
		default:
			appendTo(t, path, text)
		}
		want += fmt.Sprintln(i)
		testwait.For(t, patience, "the line", func() bool { return f.got() == want })
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	path := write(t, entry("0"))
	f := follow(t, path, func(context.Context) (bool, error) {
		appendTo(t, path, entry("last words"))
		return false, nil
	}, nil)
	select {
	case err := <-f.done:
		f.done <- err
		if err != nil || f.got() != "0\nlast words\n" {
			t.Errorf("%q, %v", f.got(), err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
}

// A reader who is slow finds what was rotated away, up to a bound, and is told
// beyond it.
func TestRotationUnderASlowReader(t *testing.T) {
	for _, files := range []int{maxRotated, maxRotated + 2} {
		hold := make(chan struct{})
		path := write(t, entry("0"))
		f := follow(t, path, alive, hold)
		want := "0\n"
		for i := 1; i <= files; i++ {
			inode := func() uint64 { return inodeOf(t, path) }
			before := inode()
			rotate(t, path, entry(fmt.Sprint(i)))
			if inode() == before {
				t.Fatal("not rotated")
			}
			want += fmt.Sprintln(i)
			testwait.For(t, patience, "the rotation to be seen", func() bool { return f.watch.seen() >= min(i, maxRotated) })
		}
		close(hold)
		if files <= maxRotated {
			testwait.For(t, patience, "all", func() bool { return f.got() == want })
			continue
		}
		select {
		case err := <-f.done:
			f.done <- err
			if !errors.Is(err, ErrLost) {
				t.Errorf("err = %v after %q", err, f.got())
			}
		case <-time.After(patience):
			t.Fatal("the loss is not noticed")
		}
	}
}

func FuzzParse(f *testing.F) {
	for line := range strings.Lines(withSpace) {
		f.Add([]byte(line))
	}
	f.Add([]byte("  \n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := parse(raw)
		if err != nil {
			return
		}
		if l.stream != Stdout && l.stream != Stderr || l.whole != (len(l.text) > 0 && l.text[len(l.text)-1] == '\n') && l.whole {
			t.Fatalf("%q is %+v", raw, l)
		}
		_, _ = l.time()
	})
}

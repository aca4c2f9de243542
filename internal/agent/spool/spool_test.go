package spool

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/linefile"
)

func record(n int) *command.AuditRecord {
	return &command.AuditRecord{DeviceID: "d1", Instance: "i1", RequestID: fmt.Sprint(n), Verb: command.VerbPing, Event: command.AuditCommand}
}

func open(t testing.TB, path string, max int64) (*Spool, *linefile.Damage) {
	t.Helper()
	s, damage, err := Open(Options{Path: path, DeviceID: "d1", MaxBytes: max})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, damage
}

func add(t testing.TB, s *Spool, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := s.Append(record(n), n%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
}

// ids are the request ids of what is not confirmed.
func ids(t testing.TB, s *Spool) []string {
	t.Helper()
	data, err := s.Peek(1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range data {
		r, err := command.DecodeDocument[command.AuditRecord](d)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.RequestID)
	}
	return out
}

func want(t testing.TB, s *Spool, from, to int) {
	t.Helper()
	var expected []string
	for n := from; n < to; n++ {
		expected = append(expected, fmt.Sprint(n))
	}
	if got := ids(t, s); fmt.Sprint(got) != fmt.Sprint(expected) || s.Pending() != len(expected) {
		t.Fatalf("records %v (%d pending), want %v", got, s.Pending(), expected)
	}
}

// kinds are the two ways to keep records.
func kinds(t *testing.T, test func(t *testing.T, path string)) {
	t.Run("file", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), "audit.spool")) })
	t.Run("memory", func(t *testing.T) { test(t, "") })
}

func TestRecordsAreKeptInOrderUntilConfirmed(t *testing.T) {
	kinds(t, func(t *testing.T, path string) {
		s, _ := open(t, path, 0)
		want(t, s, 0, 0)
		add(t, s, 0, 5)
		want(t, s, 0, 5)
		if err := s.Confirm(2); err != nil {
			t.Fatal(err)
		}
		if err := s.Confirm(2); err != nil { // of a look that is used up
			t.Fatal(err)
		}
		want(t, s, 2, 5)
		add(t, s, 5, 8)
		want(t, s, 2, 8)
		batch, err := s.Peek(2, 1<<20)
		if err != nil || len(batch) != 2 {
			t.Fatalf("%d, %v", len(batch), err)
		}
		if batch, err := s.Peek(100, 1); err != nil || len(batch) != 1 {
			t.Errorf("%d records for one byte, %v", len(batch), err)
		}
		want(t, s, 2, 8)
		if err := s.Confirm(100); err != nil {
			t.Fatal(err)
		}
		want(t, s, 8, 8)
		add(t, s, 8, 9)
		want(t, s, 8, 9)
	})
}

func TestRecordsAreNumberedAndChained(t *testing.T) {
	kinds(t, func(t *testing.T, path string) {
		s, _ := open(t, path, 0)
		add(t, s, 0, 3)
		data, _ := s.Peek(10, 1<<20)
		prev := ""
		for i, d := range data {
			r, err := command.DecodeDocument[command.AuditRecord](d)
			if err != nil || r.Prev != prev || r.Seq != uint64(i+1) {
				t.Errorf("%d: %+v %v", i, r, err)
			}
			prev = command.AuditHash(d)
		}
	})
}

func TestTheNextRunGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	n := 0
	prev := ""
	for run := range 4 {
		s, damage := open(t, path, 0)
		if damage != nil {
			t.Fatal(damage)
		}
		want(t, s, max(0, n-1), n) // one is left by each run
		add(t, s, n, n+3)
		data, _ := s.Peek(10, 1<<20)
		for _, d := range data[len(data)-3:] {
			r, _ := command.DecodeDocument[command.AuditRecord](d)
			if r.Prev != prev {
				t.Fatalf("run %d: the chain is broken", run)
			}
			prev = command.AuditHash(d)
		}
		if err := s.Confirm(len(data) - 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		n += 3
	}
}

func TestTheFileStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	const limit = 32 << 10
	s, _ := open(t, path, limit)
	for n := range 1000 {
		if err := s.Append(record(n), false); err != nil {
			t.Fatal(err)
		}
		if n%3 == 0 {
			if _, err := s.Peek(3, 1<<20); err != nil {
				t.Fatal(err)
			}
			if err := s.Confirm(3); err != nil {
				t.Fatal(err)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Size() > 2*limit {
			t.Fatalf("%d bytes, %v", info.Size(), err)
		}
	}
	s.Close()
	s, damage := open(t, path, limit)
	if damage != nil || s.Pending() > 3 {
		t.Errorf("%v, %d pending", damage, s.Pending())
	}
}

func TestConfirmingWhileMoreComesLosesNothing(t *testing.T) {
	kinds(t, func(t *testing.T, path string) {
		s, _ := open(t, path, 64<<10)
		const total = 2000
		var wg sync.WaitGroup
		var next int
		var failed error
		wg.Go(func() {
			for n := 0; n < total; {
				switch err := s.Append(record(n), false); {
				case err == nil:
					n++
				case !errors.Is(err, ErrFull):
					failed = err
					return
				}
			}
		})
		for next < total && failed == nil {
			data, err := s.Peek(7, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range data {
				r, err := command.DecodeDocument[command.AuditRecord](d)
				if err != nil || r.RequestID != fmt.Sprint(next) {
					t.Fatalf("got %s, want %d: %v", r.RequestID, next, err)
				}
				next++
			}
			if err := s.Confirm(len(data)); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		if failed != nil || s.Pending() != 0 {
			t.Errorf("%v, %d pending", failed, s.Pending())
		}
	})
}

func TestAFullSpoolCountsWhatItLoses(t *testing.T) {
	kinds(t, func(t *testing.T, path string) {
		s, _ := open(t, path, 8<<10)
		if !s.Room() {
			t.Fatal("no room at first")
		}
		kept := 0
		for s.Append(record(kept), false) == nil {
			kept++
		}
		for range 2 {
			if err := s.Append(record(kept), false); !errors.Is(err, ErrFull) {
				t.Fatalf("err = %v", err)
			}
		}
		// What changes something is let in all the same, until its own room is used up.
		if s.Lost() != 3 || !s.Room() {
			t.Errorf("%d lost, room %v", s.Lost(), s.Room())
		}
		if err := s.Append(record(kept), true); err != nil {
			t.Fatal(err)
		}
		data, _ := s.Peek(100, 1<<20)
		last, _ := command.DecodeDocument[command.AuditRecord](data[len(data)-1])
		if last.Lost != 3 || s.Lost() != 0 || last.Seq != uint64(len(data)) {
			t.Errorf("%+v", last)
		}
		for n := 0; s.Room(); n++ {
			if err := s.Append(record(kept), true); err != nil {
				t.Fatalf("let in and not recorded after %d: %v", n, err)
			}
		}
		// The end of one that was let in before still fits.
		if err := s.Append(record(kept), true); err != nil {
			t.Fatal(err)
		}
		data, _ = s.Peek(100, 1<<20)
		if err := s.Append(record(0), false); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		if err := s.Confirm(len(data)); err != nil || !s.Room() {
			t.Errorf("%v, room %v", err, s.Room())
		}
		s.Close()
		if path == "" {
			return
		}
		s, _ = open(t, path, 4<<10)
		if s.Lost() != 1 {
			t.Errorf("the next run knows of %d lost", s.Lost())
		}
		add(t, s, 0, 1)
		s.Close()
		s, _ = open(t, path, 4<<10)
		if s.Lost() != 0 {
			t.Errorf("told twice: %d", s.Lost())
		}
	})
}

// TestAnyTornTailIsSurvived cuts and breaks the file around the ends of lines.
func TestAnyTornTailIsSurvived(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.spool")
	s, _ := open(t, path, 0)
	add(t, s, 0, 2)
	want(t, s, 0, 2)
	if err := s.Confirm(1); err != nil {
		t.Fatal(err)
	}
	add(t, s, 2, 4)
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ends := []int{} // of whole lines
	for i, c := range whole {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	check := func(what string, raw []byte, cut int) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(path + ".damaged")
		s, damage := open(t, path, 0)
		lines := 0
		for _, e := range ends {
			if e <= cut {
				lines++
			}
		}
		// header, 0, 1, mark, 2, 3
		from, to := 0, max(0, lines-1)
		if lines >= 4 {
			from, to = 1, lines-2
		}
		want(t, s, from, to)
		kept := 0
		if lines > 0 {
			kept = ends[lines-1]
		}
		if (damage != nil) != (len(raw) > kept) {
			t.Fatalf("%s: damage %v", what, damage)
		}
		if damage != nil {
			aside, err := os.ReadFile(damage.SetAside)
			if err != nil || !bytes.Equal(aside, raw[kept:]) || damage.Bytes != int64(len(aside)) {
				t.Fatalf("%s: set aside %q, %v", what, aside, err)
			}
		}
		add(t, s, to, to+1)
		want(t, s, from, to+1)
		s.Close()
		if _, damage := open(t, path, 0); damage != nil {
			t.Fatalf("%s: damaged again: %v", what, damage)
		}
	}
	places := []int{0, 1, len(whole)}
	for _, e := range ends {
		places = append(places, e-1, e, e+8, e+13)
	}
	for _, cut := range places {
		if cut > len(whole) {
			continue
		}
		check(fmt.Sprintf("cut at %d", cut), whole[:cut], cut)
		if cut > 0 {
			broken := bytes.Clone(whole)
			broken[cut-1] ^= 1
			at := 0 // whole lines before the broken one
			for _, e := range ends {
				if e < cut {
					at = e
				}
			}
			check(fmt.Sprintf("broken at %d", cut), broken, at)
		}
	}
}

func TestRecordsThatGoBadOnDiskAreReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	s, _ := open(t, path, 0)
	add(t, s, 0, 4)
	raw, _ := os.ReadFile(path)
	raw = bytes.TrimRight(raw, "\x00")
	i := bytes.LastIndexByte(raw[:len(raw)-1], '\n') + 20
	raw[i] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := s.Peek(10, 1<<20)
	var damage *DamageError
	if !errors.As(err, &damage) || len(data) != 3 {
		t.Fatalf("%d records, %v", len(data), err)
	}
	want(t, s, 0, 3)
	if s.Lost() == 0 {
		t.Error("the loss is not counted")
	}
}

// TestADiskThatIsFullLosesNoOtherRecord runs in a process that may write files of
// 64 KiB at most: what is beyond fails as on a disk that is full.
func TestADiskThatIsFullLosesNoOtherRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	out := child(t, "full", path)
	kept, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil || kept < 10 {
		t.Fatalf("the child says %q", out)
	}
	s, damage := open(t, path, 0)
	if damage != nil {
		t.Error(damage)
	}
	want(t, s, 0, kept)
	if s.Lost() != 1 {
		t.Errorf("%d lost", s.Lost())
	}
}

func fillDisk(path string) error {
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}); err != nil {
		return err
	}
	s, _, err := Open(Options{Path: path, DeviceID: "d1"})
	if err != nil {
		return err
	}
	kept := 0
	for ; s.Append(record(kept), false) == nil; kept++ {
	}
	if s.Lost() != 1 {
		return fmt.Errorf("%d lost", s.Lost())
	}
	// Room is made, so that the loss can be told at the end.
	if _, err := s.Peek(1, 1); err != nil {
		return err
	}
	fmt.Println(kept)
	return s.Close()
}

// child runs this test's binary again as another process and gives what it wrote.
func child(t testing.TB, role, path string) string {
	t.Helper()
	cmd := childCommand(t, role, path)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func childCommand(t testing.TB, role, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SPOOL_TEST_ROLE="+role, "SPOOL_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestMain(m *testing.M) {
	roles := map[string]func(path string) error{"full": fillDisk, "write": writeForEver}
	role := os.Getenv("SPOOL_TEST_ROLE")
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](os.Getenv("SPOOL_TEST_PATH")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// writeForEver appends records and tells the number of each that is kept, on one
// line. It confirms some, without telling.
func writeForEver(path string) error {
	s, damage, err := Open(Options{Path: path, DeviceID: "d1", MaxBytes: 256 << 10})
	if err != nil || damage != nil {
		return fmt.Errorf("open: %v, %v", damage, err)
	}
	next, err := strconv.Atoi(os.Getenv("SPOOL_TEST_NEXT"))
	if err != nil {
		return err
	}
	for ; ; next++ {
		if err := s.Append(record(next), next%50 == 0); err != nil {
			return err
		}
		if _, err := fmt.Println(next); err != nil {
			return err
		}
		if s.Pending() > 200 {
			if _, err := s.Peek(100, 1<<20); err != nil {
				return err
			}
			if err := s.Confirm(100); err != nil {
				return err
			}
		}
	}
}

// TestAKilledWriterLosesNothing kills a process that appends, at any moment, and
// looks whether all that it had kept is there once and in order.
func TestAKilledWriterLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	next, torn := 0, 0
	for round := range 25 {
		cmd := childCommand(t, "write", path)
		cmd.Env = append(cmd.Env, "SPOOL_TEST_NEXT="+strconv.Itoa(next))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The moment is a number of records and a little more.
		after := next + 1 + rand.IntN(400)
		kept := next - 1
		for lines := bufio.NewScanner(out); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil || n != kept+1 {
				t.Fatalf("round %d: the writer says %q after %d", round, lines.Text(), kept)
			}
			if kept = n; n == after {
				for range rand.IntN(20000) {
					runtime.Gosched()
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || kept < after {
			t.Fatalf("round %d: the writer ended by itself after %d: %v", round, kept, err)
		}
		s, damage := open(t, path, 256<<10)
		if damage != nil {
			torn++ // the record that was being written when it died
		}
		got := ids(t, s)
		if len(got) == 0 {
			t.Fatalf("round %d: nothing is left", round)
		}
		first, err := strconv.Atoi(got[0])
		if err != nil {
			t.Fatal(err)
		}
		last := first + len(got) - 1
		// One more than was told may have been kept.
		if last != kept && last != kept+1 {
			t.Fatalf("round %d: the last is %d, want %d or one more", round, last, kept)
		}
		want(t, s, first, last+1)
		next = last + 1
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d records, %d of 25 kills tore one", next, torn)
}

// TestAFileThatIsCutUnderTheSpoolIsAnError: what is mapped has no page any more,
// which the kernel tells with a signal.
func TestAFileThatIsCutUnderTheSpoolIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	s, _ := open(t, path, 0)
	add(t, s, 0, 3)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	_ = s.Append(record(3), false) // goes behind a hole
	if _, err := s.Peek(10, 1<<20); err == nil {
		t.Fatal("nothing is noticed")
	}
	s.Close()
	s, damage := open(t, path, 0)
	if damage == nil {
		t.Fatal("no damage")
	}
	add(t, s, 0, 1)
}

func TestClosedIsClosed(t *testing.T) {
	kinds(t, func(t *testing.T, path string) {
		s, _ := open(t, path, 0)
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		_, err := s.Peek(1, 1)
		for _, err := range []error{s.Append(record(0), true), err, s.Confirm(1)} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("err = %v", err)
			}
		}
		if s.Room() {
			t.Error("room")
		}
	})
}

func FuzzReadSpool(f *testing.F) {
	path := filepath.Join(f.TempDir(), "audit.spool")
	s, _ := open(f, path, 0)
	add(f, s, 0, 2)
	want(f, s, 0, 2)
	if err := s.Confirm(1); err != nil {
		f.Fatal(err)
	}
	add(f, s, 2, 3)
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	line := func(text string) []byte { return linefile.AppendLine(nil, []byte(text)) }
	f.Add(line(`{"spool":1,"device_id":"d1","head":""}`))
	f.Add(append(line(`{"spool":1,"device_id":"d1","head":"x"}`), line(`{"confirmed":9}`)...))
	f.Add(append(line(`{"spool":1,"device_id":"d1","head":""}`), make([]byte, 100)...))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		// The spool opens, whatever is there.
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		s, damage := open(t, path, 0)
		if damage != nil && (damage.Bytes == 0 || damage.Bytes > int64(len(raw))) {
			t.Fatalf("damage %v", damage)
		}
		got := ids(t, s)
		if len(got) != s.Pending() {
			t.Fatalf("%d records, %d pending", len(got), s.Pending())
		}
		head := s.head
		s.Close()
		// What was taken as whole is read the same way again.
		s, damage = open(t, path, 0)
		if damage != nil || s.head != head || fmt.Sprint(ids(t, s)) != fmt.Sprint(got) {
			t.Fatalf("again: %v", damage)
		}
		add(t, s, 0, 1)
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, path := range []string{"", filepath.Join(b.TempDir(), "audit.spool")} {
		b.Run(map[bool]string{true: "memory", false: "file"}[path == ""], func(b *testing.B) {
			s, _ := open(b, path, 64<<20)
			rec := record(1)
			rec.Caller = command.AuditCaller{User: "https://id.example.com#290812345678901234", UID: command.UID("x"), Account: "OPS"}
			rec.PayloadSHA256 = command.PayloadDigest(nil)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Append(rec, false); err != nil {
					b.Fatal(err)
				}
				if s.Pending() >= 128 {
					if _, err := s.Peek(128, 1<<20); err != nil {
						b.Fatal(err)
					}
					if err := s.Confirm(128); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func TestTheFileIsReadableText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	s, _ := open(t, path, 0)
	add(t, s, 0, 2)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.TrimRight(raw, "\x00")
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		_, text, ok := strings.Cut(line, " ")
		if !ok || !json.Valid([]byte(text)) {
			t.Errorf("%s", line)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

// TestAConfirmationDoesNotHangOnCompaction: where a disk has no room for a second
// file, the next run still knows what is confirmed.
func TestAConfirmationDoesNotHangOnCompaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.spool")
	s, _ := open(t, path, 8<<10)
	if err := os.Mkdir(path+".new", 0o700); err != nil { // so that no new file can be made
		t.Fatal(err)
	}
	add(t, s, 0, 10)
	want(t, s, 0, 10)
	if err := s.Confirm(9); err != nil {
		t.Fatal(err)
	}
	want(t, s, 9, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, damage := open(t, path, 8<<10)
	if damage != nil {
		t.Fatal(damage)
	}
	want(t, s, 9, 10)
}

package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/linefile"
)

var deadline = time.Date(2026, 1, 2, 15, 4, 5, 6, time.UTC)

func entry(uid, id string) Entry {
	return Entry{Key: Key{uid, id}, Verb: command.VerbExec, Digest: "d-" + id, Deadline: deadline}
}

func open(t testing.TB, path string) (*Journal, []Entry, *linefile.Damage) {
	t.Helper()
	j, started, damage, err := Open(Options{Path: path, DeviceID: "d1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	slices.SortFunc(started, func(a, b Entry) int { return strings.Compare(a.UID+a.ID, b.UID+b.ID) })
	return j, started, damage
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill journals one request of each kind.
func fill(t testing.TB, j *Journal) {
	t.Helper()
	exit := 3
	must(t, j.Begin(entry("alice", "1")))
	must(t, j.Begin(entry("bob", "1"))) // another caller's, with the same id
	must(t, j.Begin(entry("alice", "2")))
	must(t, j.Begin(entry("alice", "3")))
	must(t, j.End(Key{"alice", "1"}, Outcome{Reply: json.RawMessage(`{"a":"\u003c"}`), Open: true}))
	must(t, j.End(Key{"alice", "1"}, Outcome{Reply: json.RawMessage(`{"a":"\u003c"}`), ExitCode: &exit}))
	must(t, j.End(Key{"bob", "1"}, Outcome{Error: &command.ErrorReply{Error: command.ErrorDetail{Kind: command.KindInternal, Message: "m"}}}))
	must(t, j.Forget(Key{"alice", "3"}))
	must(t, j.Forget(Key{"nobody", "3"}))
}

func filled() []Entry {
	exit := 3
	a, b := entry("alice", "1"), entry("bob", "1")
	a.Ended = &Outcome{Reply: json.RawMessage(`{"a":"\u003c"}`), ExitCode: &exit}
	b.Ended = &Outcome{Error: &command.ErrorReply{Error: command.ErrorDetail{Kind: command.KindInternal, Message: "m"}}}
	return []Entry{a, entry("alice", "2"), b}
}

func TestTheNextRunKnowsWhatStarted(t *testing.T) {
	for _, end := range []string{"closed", "killed"} {
		t.Run(end, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "requests.journal")
			j, started, damage := open(t, path)
			if len(started) != 0 || damage != nil {
				t.Fatalf("%v, %v", started, damage)
			}
			fill(t, j)
			if end == "closed" {
				must(t, j.Close())
				must(t, j.Close())
				if err := j.Begin(entry("alice", "9")); err != ErrClosed {
					t.Errorf("err = %v", err)
				}
			}
			for range 2 { // the second reads what the first wrote anew
				_, started, damage = open(t, path)
				if damage != nil || !reflect.DeepEqual(started, filled()) {
					t.Fatalf("%+v, %v", started, damage)
				}
			}
		})
	}
}

func TestARequestBeginsOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.journal")
	j, _, _ := open(t, path)
	must(t, j.Begin(entry("alice", "1")))
	if err := j.Begin(entry("alice", "1")); err == nil {
		t.Error("it begins twice")
	}
	if err := j.End(Key{"alice", "2"}, Outcome{}); err == nil {
		t.Error("one ends that did not begin")
	}
	must(t, j.Forget(Key{"alice", "1"}))
	must(t, j.Begin(entry("alice", "1")))
	if _, started, damage := open(t, path); damage != nil || len(started) != 1 {
		t.Errorf("%v, %v", started, damage)
	}
}

func TestTheFileStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.journal")
	j, _, _ := open(t, path)
	must(t, j.Begin(entry("alice", "stays")))
	big := Outcome{Reply: json.RawMessage(`"` + strings.Repeat("x", 8<<10) + `"`)}
	for i := range 100 {
		e := entry("alice", fmt.Sprint(i))
		must(t, j.Begin(e))
		must(t, j.End(e.Key, big))
		must(t, j.Forget(e.Key))
		if info, err := os.Stat(path); err != nil || info.Size() > 2*compactFrom {
			t.Fatalf("%d bytes, %v", info.Size(), err)
		}
	}
	if _, started, damage := open(t, path); damage != nil || len(started) != 1 || started[0].ID != "stays" {
		t.Errorf("%v, %v", started, damage)
	}
}

func TestAnyTornTailIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.journal")
	j, _, _ := open(t, path)
	must(t, j.Begin(entry("alice", "1")))
	must(t, j.Begin(entry("alice", "2")))
	must(t, j.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := last; cut < len(whole); cut++ {
		must(t, os.WriteFile(path, whole[:cut], 0o600))
		j, started, damage := open(t, path)
		if len(started) != 1 || (damage != nil) != (cut > last) {
			t.Fatalf("cut at %d: %v, %v", cut, started, damage)
		}
		must(t, j.Begin(entry("alice", "2")))
		must(t, j.Close())
		if _, started, damage := open(t, path); len(started) != 2 || damage != nil {
			t.Fatalf("cut at %d, then: %v, %v", cut, started, damage)
		}
	}
}

func TestAnotherDevicesJournalIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.journal")
	other, _, _, err := Open(Options{Path: path, DeviceID: "d2"})
	must(t, err)
	must(t, other.Begin(entry("alice", "1")))
	must(t, other.Close())
	_, started, damage := open(t, path)
	if len(started) != 0 || damage == nil || !strings.Contains(damage.String(), "belongs to device \"d2\"") {
		t.Errorf("%v, %v", started, damage)
	}
}

func FuzzReadJournal(f *testing.F) {
	path := filepath.Join(f.TempDir(), "requests.journal")
	j, _, _ := open(f, path)
	fill(f, j)
	must(f, j.Close())
	whole, err := os.ReadFile(path)
	must(f, err)
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	line := func(text string) []byte { return linefile.AppendLine(nil, []byte(text)) }
	head := line(`{"journal":{"version":1,"device_id":"d1"}}`)
	f.Add(append(bytes.Clone(head), line(`{"end":{"uid":"a","id":"b"}}`)...))
	f.Add(append(bytes.Clone(head), line(`{"begin":null}`)...))
	f.Add(append(bytes.Clone(head), make([]byte, 50)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "j")
		must(t, os.WriteFile(path, raw, 0o600))
		j, started, _ := open(t, path)
		must(t, j.Close())
		// What was taken as whole is read the same way again.
		j, again, damage := open(t, path)
		a, err := json.Marshal(started)
		must(t, err)
		b, err := json.Marshal(again)
		must(t, err)
		if damage != nil || !bytes.Equal(a, b) {
			t.Fatalf("again: %s, %v; first %s", b, damage, a)
		}
		e := entry("fuzz", "a new one")
		must(t, j.Begin(e))
		must(t, j.Forget(e.Key))
	})
}

// TestWhatIsKeptDoesNotHangOnCompaction: a disk with no room for a second file
// must not make a request fail whose line is kept, and be refused from then on.
func TestWhatIsKeptDoesNotHangOnCompaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.journal")
	j, _, _ := open(t, path)
	must(t, os.Mkdir(path+".new", 0o700)) // so that no new file can be made
	big := Outcome{Reply: json.RawMessage(`"` + strings.Repeat("x", compactFrom) + `"`)}
	must(t, j.Begin(entry("alice", "big")))
	must(t, j.End(Key{"alice", "big"}, big))
	must(t, j.Forget(Key{"alice", "big"})) // most of the file is not needed now
	must(t, j.Begin(entry("alice", "1")))
	must(t, os.Remove(path+".new"))
	must(t, j.Begin(entry("alice", "2")))
	if info, err := os.Stat(path); err != nil || info.Size() > compactFrom {
		t.Errorf("%v: the file was not written anew when that could be done (%v)", info.Size(), err)
	}
	must(t, j.Close())
	if _, started, damage := open(t, path); len(started) != 2 || damage != nil {
		t.Errorf("%v, %v", started, damage)
	}
}

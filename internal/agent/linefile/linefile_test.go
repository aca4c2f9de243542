package linefile_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/internal/agent/linefile"
)

const page = 64 << 10 // a multiple of every page size

// options is a file in each way that lines can get into one.
func options(path string) map[string]linefile.Options {
	o := linefile.Options{Path: path, What: "test file", MaxLine: 4 << 10}
	windowed, memory := o, o
	windowed.Window, memory.Path = page, ""
	return map[string]linefile.Options{"by system calls": o, "by a window": windowed, "in memory": memory}
}

// open opens a file and gives its objects.
func open(t *testing.T, o linefile.Options) (*linefile.File, []string, *linefile.Damage) {
	t.Helper()
	var all []string
	f, damage, err := linefile.Open(o, func(data []byte, _ int64) error { all = append(all, string(data)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return f, all, damage
}

func each(t *testing.T, f *linefile.File) (all []string) {
	t.Helper()
	if err := f.Each(0, func(data []byte) error { all = append(all, string(data)); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsAppendedIsRead(t *testing.T) {
	for name, o := range options(filepath.Join(t.TempDir(), "lines")) {
		t.Run(name, func(t *testing.T) {
			if o.Path != "" {
				o.Path += strings.ReplaceAll(name, " ", "-")
			}
			f, _, _ := open(t, o)
			var want []string
			size := int64(0)
			for i := range 3000 { // more than one window
				line := fmt.Sprintf(`{"n":%d,"text":%q}`, i, strings.Repeat("x", i%100))
				must(t, f.Append([]byte(line)))
				want, size = append(want, line), size+linefile.LineSize([]byte(line))
			}
			if got := each(t, f); !slices.Equal(got, want) || f.Size() != size {
				t.Errorf("%d lines of %d bytes, want %d of %d", len(got), f.Size(), len(want), size)
			}
			first := linefile.LineSize([]byte(want[0]))
			if raw, err := f.Read(first, linefile.LineSize([]byte(want[1]))); err != nil || !bytes.Contains(raw, []byte(want[1])) {
				t.Errorf("%q, %v", raw, err)
			}
			must(t, f.SyncFunc()())
			// What a process that is killed leaves is what the next one finds.
			if o.Path != "" {
				next, got, damage := open(t, o)
				if damage != nil || !slices.Equal(got, want) {
					t.Errorf("the next run: %d lines, %v", len(got), damage)
				}
				must(t, next.Close())
			}
			must(t, f.Replace(func(add func([]byte) error) error { return add([]byte(`{"only":1}`)) }))
			must(t, f.Append([]byte(`{"and":2}`)))
			if got := each(t, f); !slices.Equal(got, []string{`{"only":1}`, `{"and":2}`}) {
				t.Errorf("after a replacement: %v", got)
			}
			must(t, f.Close())
			if o.Path != "" {
				info, err := os.Stat(o.Path)
				if err != nil || info.Size() != linefile.LineSize([]byte(`{"only":1}`))+linefile.LineSize([]byte(`{"and":2}`)) || info.Mode().Perm() != 0o600 {
					t.Errorf("%v, %v", info, err)
				}
			}
		})
	}
}

func TestADamagedTailIsSetAside(t *testing.T) {
	good := string(linefile.AppendLine(nil, []byte(`{"n":1}`)))
	second := string(linefile.AppendLine(nil, []byte(`{"n":2}`)))
	for name, c := range map[string]struct{ tail, aside, reason string }{
		"nothing":             {"", "", ""},
		"zeros of a window":   {strings.Repeat("\x00", page), "", ""},
		"torn":                {second[:7], second[:7], "not complete|not written to its end"},
		"torn in a window":    {second[:7] + strings.Repeat("\x00", page), second[:7], "not written to its end"},
		"a line behind zeros": {"\x00\x00" + second, "\x00\x00" + second, "not written from its beginning"},
		"wrong checksum":      {strings.Replace(second, "2", "3", 1), "", "checksum"},
		"no checksum":         {"zzzzzzzz {}\n", "zzzzzzzz {}\n", "no checksum"},
		"too long":            {strings.Repeat("a", 5<<10) + "\n", "", "too long"},
		"lines behind it":     {"garbage\n" + second, "garbage\n" + second, "not complete"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(filepath.Join(t.TempDir(), "lines"))["by a window"]
			must(t, os.WriteFile(o.Path, []byte(good+c.tail), 0o600))
			f, got, damage := open(t, o)
			if !slices.Equal(got, []string{`{"n":1}`}) || f.Size() != int64(len(good)) {
				t.Errorf("%q, %d bytes", got, f.Size())
			}
			if (damage != nil) != (c.reason != "") {
				t.Fatalf("damage: %v", damage)
			}
			if damage != nil {
				if !slices.ContainsFunc(strings.Split(c.reason, "|"), func(r string) bool { return strings.Contains(damage.Reason, r) }) {
					t.Errorf("reason %q, want %q", damage.Reason, c.reason)
				}
				aside, err := os.ReadFile(damage.SetAside)
				if err != nil || c.aside != "" && string(aside) != c.aside || int64(len(aside)) != damage.Bytes {
					t.Errorf("set aside %q (%d), %v", aside, damage.Bytes, err)
				}
			}
			must(t, f.Append([]byte(`{"n":9}`)))
			must(t, f.Close())
			if _, got, damage := open(t, o); damage != nil || !slices.Equal(got, []string{`{"n":1}`, `{"n":9}`}) {
				t.Errorf("the next run: %q, %v", got, damage)
			}
		})
	}
}

// TestWhatTakeRefusesIsDamage: a line can be whole and yet wrong.
func TestWhatTakeRefusesIsDamage(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "lines"))["by system calls"]
	f, _, _ := open(t, o)
	for _, line := range []string{`{"n":1}`, `{"n":2}`, `{"n":3}`} {
		must(t, f.Append([]byte(line)))
	}
	must(t, f.Close())
	f, damage, err := linefile.Open(o, func(data []byte, _ int64) error {
		if string(data) == `{"n":2}` {
			return errors.New("two is not wanted")
		}
		return nil
	})
	must(t, err)
	if damage == nil || !strings.Contains(damage.Reason, "two is not wanted") || damage.Bytes != 2*linefile.LineSize([]byte(`{"n":2}`)) {
		t.Errorf("%v", damage)
	}
	if got := each(t, f); !slices.Equal(got, []string{`{"n":1}`}) {
		t.Errorf("%q", got)
	}
	damage, err = f.SetAside(0, errors.New("nor is one"))
	if err != nil || f.Size() != 0 || !strings.Contains(damage.String(), "nor is one") {
		t.Errorf("%v, %v, %d bytes", damage, err, f.Size())
	}
	must(t, f.Close())
}

// TestAReplacementThatFailsChangesNothing, and leaves no file.
func TestAReplacementThatFailsChangesNothing(t *testing.T) {
	for name, o := range options(filepath.Join(t.TempDir(), "lines")) {
		t.Run(name, func(t *testing.T) {
			f, _, _ := open(t, o)
			must(t, f.Append([]byte(`{"n":1}`)))
			failed := errors.New("no more")
			err := f.Replace(func(add func([]byte) error) error { return errors.Join(add([]byte(`{"n":2}`)), failed) })
			if !errors.Is(err, failed) || !strings.Contains(err.Error(), "test file") {
				t.Errorf("%v", err)
			}
			must(t, f.Append([]byte(`{"n":3}`)))
			if got := each(t, f); !slices.Equal(got, []string{`{"n":1}`, `{"n":3}`}) {
				t.Errorf("%q", got)
			}
			must(t, f.Close())
			if _, err := os.Stat(o.Path + ".new"); err == nil {
				t.Error("a half-written file is left")
			}
			if o.Path != "" {
				must(t, os.Remove(o.Path))
			}
		})
	}
}

// FuzzOpen: whatever is in a file, what is read of it are whole lines from its
// beginning, the rest is set aside, and the next run finds the same lines whole.
func FuzzOpen(f *testing.F) {
	line := linefile.AppendLine(nil, []byte(`{"n":1}`))
	f.Add([]byte{})
	f.Add(line)
	f.Add(append(bytes.Clone(line), line[:9]...))
	f.Add(append(bytes.Clone(line), 0, 0, 0))
	f.Add([]byte("00000000 \n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		o := linefile.Options{Path: filepath.Join(t.TempDir(), "lines"), What: "test file", MaxLine: 256}
		must(t, os.WriteFile(o.Path, content, 0o600))
		file, got, damage := open(t, o)
		var want []byte
		for _, data := range got {
			want = linefile.AppendLine(want, []byte(data))
		}
		if !bytes.EqualFold(want, content[:len(want)]) || file.Size() != int64(len(want)) { // hexadecimal of either case
			t.Errorf("%d bytes of lines %q", file.Size(), got)
		}
		if damage == nil && len(bytes.TrimRight(content[len(want):], "\x00")) > 0 {
			t.Errorf("%q is lost without a word", content[len(want):])
		}
		must(t, file.Close())
		next, again, damage := open(t, o)
		if damage != nil || !slices.Equal(again, got) {
			t.Errorf("the next run: %q, then %q, %v", got, again, damage)
		}
		must(t, next.Close())
	})
}

package doctable

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that may fail without failing the one that it runs in.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(string, ...any) {
	r.failed = true
	runtime.Goexit()
}

func check(t *testing.T, table Table, update bool) (failed bool) {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Check(r, table, update)
	}()
	<-done
	return r.failed
}

func TestTheTableIsWrittenAndHeld(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	table := Table{File: file, Name: "x", Head: []string{"a", "b"}, Rows: [][]string{{"1", "2"}}}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
	if !check(t, table, false) {
		t.Error("another table passes")
	}
	if check(t, table, true) || check(t, table, false) {
		t.Error("what was written is not what is wanted")
	}
	got, err := os.ReadFile(file)
	want := "before\n<!-- x: begin -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- x: end -->\nafter\n"
	if err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	write(strings.ReplaceAll(want, "x: end", "y: end"))
	if !check(t, table, true) {
		t.Error("a document without marks passes")
	}
}

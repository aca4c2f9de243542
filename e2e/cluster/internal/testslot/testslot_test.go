//go:build unix

package testslot

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
)

func TestSlotsAreTakenOnceAndLeftLocksRemoved(t *testing.T) {
	dir := t.TempDir()
	lockOf := func(n int) string { return filepath.Join(dir, fmt.Sprint(n)) }
	t.Cleanup(func() { held = nil })
	other, err := filelock.Open(lockOf(0)) // of a run that lives
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, n := range []int{1, 3} { // of runs that were killed
		if err := os.WriteFile(lockOf(n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	there := func(want ...bool) {
		t.Helper()
		for n, want := range want {
			if _, err := os.Stat(lockOf(n)); (err == nil) != want {
				t.Errorf("lock %d: %v", n, err)
			}
		}
	}
	if n, err := take(4, lockOf); n != 1 || err != nil {
		t.Fatalf("slot %d, %v", n, err)
	}
	there(true, true, false, false)
	first := held
	if n, err := take(2, lockOf); err == nil {
		t.Errorf("slot %d of two that are taken", n)
	}
	held = first
	Release()
	there(true, false, false, false)
}

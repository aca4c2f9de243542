//go:build linux

package logfile

import (
	"os"
	"syscall"
	"testing"
)

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// seen is how many files wait.
func (w *watch) seen() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.next)
}

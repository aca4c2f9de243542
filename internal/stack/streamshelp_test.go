//go:build linux

package stack

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

func itoa(i int) string { return strconv.Itoa(i) }

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// processWith tells whether a process has an argument that is word.
func processWith(word string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, arg := range bytes.Split(data, []byte{0}) {
			if string(arg) == word {
				return true
			}
		}
	}
	return false
}

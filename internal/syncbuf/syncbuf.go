// Package syncbuf has a buffer for what a process writes while somebody else reads it.
package syncbuf

import (
	"bytes"
	"sync"
)

// Buffer is a [bytes.Buffer] for several goroutines. The zero value is ready.
type Buffer struct {
	// Max is how many bytes are kept, the last ones; 0: all. It does not change after
	// the first write.
	Max int

	mu sync.Mutex
	b  []byte
}

// Write appends p. It does not fail.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	if extra := len(b.b) - b.Max; b.Max > 0 && extra > 0 {
		b.b = b.b[extra:]
	}
	return len(p), nil
}

// Bytes is a copy of what is kept.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b)
}

// String is what is kept.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}

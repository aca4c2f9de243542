package linefile

import (
	"errors"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// window is a part of a file that is mapped into memory. The zero value is none;
// the first write opens it, and each one that does not fit moves it on.
type window struct {
	mem    []byte
	start  int64 // offset of mem in the file
	denied bool  // not to be had on this file system, or it failed
}

// write copies line to offset, and tells whether it did. Where it did not, and
// the file cannot take the line by a system call either, that one says why.
func (w *window) write(file *os.File, line []byte, offset, size int64) bool {
	if w.denied || int64(len(line)) > size-pageSize {
		return false
	}
	if offset < w.start || offset+int64(len(line)) > w.start+int64(len(w.mem)) {
		if !w.move(file, offset, size) {
			return false
		}
	}
	if !copyMapped(w.mem[offset-w.start:], line) {
		w.drop()
		w.denied = true
		return false
	}
	return true
}

var pageSize = int64(os.Getpagesize())

func (w *window) move(file *os.File, offset, size int64) bool {
	w.drop()
	start := offset &^ (pageSize - 1)
	// The blocks are taken now: a disk that is full fails here, and not as a signal
	// when a page is written.
	if err := unix.Fallocate(int(file.Fd()), 0, start, size); err != nil {
		w.denied = errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
		return false
	}
	mem, err := unix.Mmap(int(file.Fd()), start, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return false
	}
	w.mem, w.start = mem, start
	return true
}

// copyMapped survives the signal that comes where the file has no page for the
// memory: somebody cut it, the disk fails, or a file system that copies on write
// is full after all.
func copyMapped(to, from []byte) (copied bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if recover() != nil {
			copied = false
		}
	}()
	copy(to, from)
	return true
}

// drop takes the mapping away. What was written stays in the file.
func (w *window) drop() {
	if w.mem != nil {
		_ = unix.Munmap(w.mem) // fails only for what is not mapped
		w.mem, w.start = nil, 0
	}
}

package logfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxRotated is how many files that replaced each other may wait for a reader
// who is slow. They are open and so stay on the disk.
const maxRotated = 8

// watch follows a file through inotify(7): that it changed, and that another one
// took its place, which is opened before a third one can.
type watch struct {
	path    string
	inotify *os.File
	changed chan struct{}
	ended   chan struct{}

	mu   sync.Mutex
	next []*os.File
	last os.FileInfo // of the file that was opened last
	old  bool        // last is the one that was there at first
	lost bool
}

func watchFile(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	// The directory, since a watch on the file goes with the file.
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_MOVED_TO); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	w := &watch{path: path, inotify: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1), ended: make(chan struct{})}
	go w.run() // ends with close
	return w, nil
}

func (w *watch) run() {
	defer close(w.ended)
	name := []byte(filepath.Base(w.path))
	buf := make([]byte, 16<<10)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mask := binary.NativeEndian.Uint32(b[4:])
			size := int(binary.NativeEndian.Uint32(b[12:]))
			entry := bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00")
			b = b[unix.SizeofInotifyEvent+size:]
			switch {
			case mask&unix.IN_Q_OVERFLOW != 0:
				w.mu.Lock()
				w.lost = true
				w.mu.Unlock()
			case !bytes.Equal(entry, name):
				continue
			case mask&unix.IN_MOVED_TO != 0:
				w.open()
			}
			w.poke()
		}
	}
}

// open takes hold of the file that took the place of the one before.
func (w *watch) open() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost || len(w.next) >= maxRotated {
		w.lost = true
		return
	}
	f, err := os.Open(w.path)
	if err != nil {
		w.lost = true
		return
	}
	info, err := f.Stat()
	if err != nil || w.last != nil && os.SameFile(info, w.last) {
		// The same again: one between was missed. Unless the first was opened only
		// after it had taken its place.
		w.lost = err != nil || !w.old
		f.Close()
		return
	}
	w.last, w.old = info, false
	w.next = append(w.next, f)
}

// first says which file is read first.
func (w *watch) first(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil { // else it was replaced already, and is read after this one
		w.last, w.old = info, true
		return nil
	}
	if os.SameFile(info, w.last) { // opened after it had been replaced
		for _, next := range w.next {
			next.Close()
		}
		w.next, w.old = nil, true
	}
	return nil
}

func (w *watch) poke() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// rotated is the next file, if the one before was replaced.
func (w *watch) rotated() (*os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.next) > 0 {
		f := w.next[0]
		w.next = w.next[1:]
		return f, nil
	}
	if w.lost {
		return nil, ErrLost
	}
	return nil, nil
}

// wait waits for a change, at most for limit.
func (w *watch) wait(ctx context.Context, limit time.Duration) (changed bool, err error) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-w.changed:
		return true, nil
	case <-t.C:
		return false, nil
	case <-w.ended:
		return false, errors.New("the watch on " + w.path + " ended")
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (w *watch) close() {
	w.inotify.Close()
	<-w.ended
	for _, f := range w.next {
		f.Close()
	}
}

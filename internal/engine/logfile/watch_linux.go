package logfile

import (
	"bytes"
	"context"
	"encoding/binary"
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
	name    string // in its directory
	changed chan struct{}

	mu   sync.Mutex
	next []*os.File
	last os.FileInfo // of the file that was opened last
	old  bool        // last is the one that was there at first
	lost bool
}

// hub is the one inotify instance that all watches share: a user may have 128 of
// them as a rule. It is there while there are watches.
type hub struct {
	inotify *os.File
	ended   chan struct{}
	byDir   map[int32]map[*watch]struct{} // by watch descriptor
}

var hubs struct {
	sync.Mutex
	now *hub
}

func watchFile(path string) (*watch, error) {
	w := &watch{path: path, name: filepath.Base(path), changed: make(chan struct{}, 1)}
	hubs.Lock()
	defer hubs.Unlock()
	h := hubs.now
	if h == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
		h = &hub{inotify: os.NewFile(uintptr(fd), "inotify"), ended: make(chan struct{}), byDir: map[int32]map[*watch]struct{}{}}
		go h.run() // ends when the last watch is closed
	}
	// The directory, since a watch on the file goes with the file.
	wd, err := h.control(func(fd int) (int, error) {
		return unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_MOVED_TO)
	})
	if err != nil {
		if hubs.now == nil {
			h.inotify.Close()
			<-h.ended
		}
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	hubs.now = h
	if h.byDir[wd] == nil {
		h.byDir[wd] = map[*watch]struct{}{}
	}
	h.byDir[wd][w] = struct{}{}
	return w, nil
}

// control calls f with the descriptor, which File.Fd would make blocking.
func (h *hub) control(f func(fd int) (int, error)) (int32, error) {
	raw, err := h.inotify.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var failed error
	if err := raw.Control(func(fd uintptr) { n, failed = f(int(fd)) }); err != nil {
		return 0, err
	}
	return int32(n), failed
}

func (w *watch) close() {
	hubs.Lock()
	h := hubs.now
	for wd, all := range h.byDir {
		if _, ok := all[w]; !ok {
			continue
		}
		if delete(all, w); len(all) == 0 {
			delete(h.byDir, wd)
			_, _ = h.control(func(fd int) (int, error) { return unix.InotifyRmWatch(fd, uint32(wd)) }) // fails where the directory is gone
		}
	}
	last := len(h.byDir) == 0
	if last {
		hubs.now = nil
	}
	hubs.Unlock()
	if last {
		h.inotify.Close()
		<-h.ended
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.next {
		f.Close()
	}
	w.next, w.lost = nil, true // an event under way opens no more
}

// watches are those of a directory, or all.
func (h *hub) watches(wd int32, all bool) []*watch {
	hubs.Lock()
	defer hubs.Unlock()
	var list []*watch
	for dir, watches := range h.byDir {
		if all || dir == wd {
			for w := range watches {
				list = append(list, w)
			}
		}
	}
	return list
}

func (h *hub) run() {
	defer close(h.ended)
	buf := make([]byte, 16<<10)
	for {
		n, err := h.inotify.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := int(binary.NativeEndian.Uint32(b[12:]))
			entry := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
			b = b[unix.SizeofInotifyEvent+size:]
			overflow := mask&unix.IN_Q_OVERFLOW != 0
			for _, w := range h.watches(wd, overflow) {
				switch {
				case overflow:
					w.mu.Lock()
					w.lost = true
					w.mu.Unlock()
				case entry != w.name:
					continue
				case mask&unix.IN_MOVED_TO != 0:
					w.open()
				}
				w.poke()
			}
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
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

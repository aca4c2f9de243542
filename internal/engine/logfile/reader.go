package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Options say which lines are wanted.
type Options struct {
	Stdout, Stderr bool
	Tail           *int      // lines from the end, of the streams that are wanted; nil: all
	Since, Until   time.Time // Since is included, Until is not; zero: no bound. A line is of when it began
	After          time.Time // the [Reader.Last] of an earlier read, which this one goes on from; zero: none
	Timestamps     bool      // begin each line with its time, in UTC
	Follow         bool      // wait for more; see Copy
}

// ErrLost is for output that the engine threw away before it was read: it keeps
// a bounded amount.
var ErrLost = errors.New("the engine threw output away that had not been read yet, because its log is bounded; read with less delay")

// bufferSize is more than the longest line of the file: conmon writes at most
// 8 KiB of output in one.
const bufferSize = 256 << 10

// Reader reads one log. It is used by one goroutine.
type Reader struct {
	path string
	o    Options
	f    *os.File
	news *watch // nil without Follow

	buf        []byte
	start, end int // what is read and not handed on yet
	times      times
	begun      bool            // what comes is after Since and After
	passed     bool            // a line was, wanted or not
	left       map[Stream]bool // a part of a line was left out for Since
	midLine    map[Stream]bool // a part of a line was handed on
	stamped    []byte
}

// Open opens the log at path. The error is [ErrFormat] where the file is in
// another format.
func Open(path string, o Options) (*Reader, error) {
	r := &Reader{path: path, o: o, buf: make([]byte, bufferSize), left: map[Stream]bool{}, midLine: map[Stream]bool{}, begun: o.Since.IsZero() && o.After.IsZero()}
	var err error
	if o.Follow {
		// Before the file is opened, so that no change of it is missed.
		if r.news, err = watchFile(path); err != nil {
			return nil, err
		}
	}
	if r.f, err = os.Open(path); err != nil {
		r.Close()
		return nil, err
	}
	if r.news != nil {
		if err := r.news.first(r.f); err != nil {
			r.Close()
			return nil, err
		}
	}
	if err := r.check(); err != nil {
		r.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if o.Tail != nil {
		err := r.seekTail(*o.Tail)
		if err == nil && (o.Timestamps || o.Follow) {
			var at int64
			if at, err = r.f.Seek(0, io.SeekCurrent); err == nil {
				err = r.times.skipTo(r.f, at)
			}
		}
		if err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// check looks at the first line; a file without one may become anything.
func (r *Reader) check() error {
	head := make([]byte, bufferSize)
	n, err := r.f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	first, _, ok := bytes.Cut(head[:n], []byte{'\n'})
	if !ok {
		if n > 0 {
			return ErrFormat
		}
		return nil
	}
	_, err = parse(append(first, '\n'))
	return err
}

// Close lets go of the file. A Copy under way must have ended.
func (r *Reader) Close() {
	if r.f != nil {
		r.f.Close()
	}
	if r.news != nil {
		r.news.close()
	}
}

// Last is the time of the last line that was read, or part of one, of those that
// the bounds let through; zero: none was.
func (r *Reader) Last() time.Time {
	if !r.passed {
		return time.Time{}
	}
	at, err := r.times.now()
	if err != nil {
		return time.Time{}
	}
	return at
}

func (r *Reader) wants(s Stream) bool {
	return (s == Stdout && r.o.Stdout) || (s == Stderr && r.o.Stderr)
}

// Copy hands the lines that are wanted to write, which must not keep them. With
// Follow it goes on until ctx ends, Until has passed, or running says that
// nothing more will come; that is asked when nothing comes for a while.
func (r *Reader) Copy(ctx context.Context, running func(context.Context) (bool, error), write func(Stream, []byte) error) error {
	last := false // one more look, since the container has ended
	for {
		done, err := r.drain(write)
		if done || err != nil {
			return err
		}
		if !r.o.Follow {
			return nil
		}
		next, err := r.news.rotated()
		if err != nil {
			return err
		}
		if next != nil {
			// What was written to the old file before it was replaced is there by now.
			if done, err := r.drain(write); done || err != nil {
				next.Close()
				return err
			}
			r.f.Close()
			r.f, r.start, r.end = next, 0, 0
			continue
		}
		if last {
			return nil
		}
		changed, err := r.news.wait(ctx, idle)
		if err != nil {
			return err
		}
		if changed {
			continue
		}
		if !r.o.Until.IsZero() && time.Now().After(r.o.Until) {
			return nil
		}
		on, err := running(ctx)
		if err != nil {
			return err
		}
		last = !on
	}
}

// idle is how long nothing comes before the container is looked at.
const idle = time.Second

// drain hands on what the file holds. done: what follows is not wanted.
func (r *Reader) drain(write func(Stream, []byte) error) (done bool, err error) {
	for {
		for {
			i := bytes.IndexByte(r.buf[r.start:r.end], '\n')
			if i < 0 {
				break
			}
			raw := r.buf[r.start : r.start+i+1]
			r.start += i + 1
			if done, err := r.hand(raw, write); done || err != nil {
				return done, err
			}
		}
		if r.start > 0 {
			r.end = copy(r.buf, r.buf[r.start:r.end])
			r.start = 0
		}
		if r.end == len(r.buf) {
			return false, fmt.Errorf("%s: %w: a line of more than %d bytes", r.path, ErrFormat, len(r.buf))
		}
		n, err := r.f.Read(r.buf[r.end:])
		r.end += n
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if n == 0 {
			return false, nil
		}
	}
}

// hand hands on one line, if it is wanted.
func (r *Reader) hand(raw []byte, write func(Stream, []byte) error) (done bool, err error) {
	l, err := parse(raw)
	if err != nil {
		return false, fmt.Errorf("%s: %w", r.path, err)
	}
	if err := r.times.note(l.stamp); err != nil {
		return false, fmt.Errorf("%s: %w", r.path, err)
	}
	if !r.begun {
		at, err := r.times.now()
		if err != nil {
			return false, fmt.Errorf("%s: %w", r.path, err)
		}
		if !r.begins(l, at) {
			return false, nil
		}
	}
	r.passed = true
	if !r.o.Until.IsZero() {
		at, err := r.times.now()
		if err != nil {
			return false, fmt.Errorf("%s: %w", r.path, err)
		}
		if !at.Before(r.o.Until) {
			return true, nil
		}
	}
	if !r.wants(l.stream) {
		return false, nil
	}
	text := l.text
	if r.o.Timestamps {
		if !r.midLine[l.stream] {
			at, err := r.times.now()
			if err != nil {
				return false, fmt.Errorf("%s: %w", r.path, err)
			}
			r.stamped = at.UTC().AppendFormat(r.stamped[:0], stampLayout)
			r.stamped = append(append(r.stamped, ' '), text...)
			text = r.stamped
		}
		r.midLine[l.stream] = !l.whole
	}
	if len(text) == 0 {
		return false, nil
	}
	return false, write(l.stream, text)
}

// begins tells whether a line is not before what is wanted, until nothing can be
// any more: the lines are in the order of their times.
func (r *Reader) begins(l line, at time.Time) bool {
	if !r.o.After.IsZero() && !at.After(r.o.After) {
		return false
	}
	if at.Before(r.o.Since) || r.left[l.stream] {
		r.left[l.stream] = !l.whole
		return false
	}
	r.begun = !r.left[Stdout] && !r.left[Stderr]
	return true
}

// stampLayout keeps all nine digits, so that times compare as text too.
const stampLayout = "2006-01-02T15:04:05.000000000Z"

// seekTail goes to the beginning of the last n lines that are wanted.
func (r *Reader) seekTail(n int) error {
	info, err := r.f.Stat()
	if err != nil {
		return err
	}
	const step = 64 << 10
	at := info.Size()
	var rest []byte // from at on, up to the first newline that was not looked at
	found := 0
	for at > 0 {
		from := max(0, at-step)
		block := make([]byte, at-from, int(at-from)+len(rest))
		if _, err := r.f.ReadAt(block, from); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		block = append(block, rest...)
		if len(block) > bufferSize+step {
			return fmt.Errorf("%s: %w", r.path, ErrFormat)
		}
		at = from
		end := bytes.LastIndexByte(block, '\n') + 1 // a line that is being written does not count
		for end > 0 {
			begin := bytes.LastIndexByte(block[:end-1], '\n') + 1
			if begin == 0 && from > 0 {
				break // its beginning is in the block before
			}
			if l, err := parse(block[begin:end]); err == nil && l.whole && r.wants(l.stream) {
				if found++; found > n {
					_, err := r.f.Seek(from+int64(end), io.SeekStart)
					return err
				}
			}
			end = begin
		}
		rest = block[:end]
	}
	return nil
}

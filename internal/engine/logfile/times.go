package logfile

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// times gives each line of the file a time of its own. conmon gives all lines that
// it read at once the same one: of those each is a nanosecond after the line
// before, so that whoever saw one can go on with the next. It is the same in every
// read of the file.
type times struct {
	stamp []byte    // of the line that was noted last
	first time.Time // of the first line with that stamp; zero: as the stamp says
	same  int       // lines with that stamp before this one
}

// overlap is more than lines of one stamp can reach into the next. A stamp that
// is further back is that of a clock that was set.
const overlap = time.Millisecond

// note takes the next line, of either output.
func (t *times) note(stamp []byte) error {
	if bytes.Equal(stamp, t.stamp) {
		t.same++
		return nil
	}
	var last time.Time
	if t.same > 0 || !t.first.IsZero() {
		var err error
		if last, err = t.now(); err != nil {
			return err
		}
	}
	t.stamp, t.first, t.same = append(t.stamp[:0], stamp...), time.Time{}, 0
	if last.IsZero() {
		return nil
	}
	at, err := line{stamp: stamp}.time()
	if err == nil && !at.After(last) && last.Sub(at) < overlap {
		at = last.Add(time.Nanosecond)
	}
	t.first = at
	return err
}

// now is the time of the line that was noted last; zero: none was.
func (t *times) now() (time.Time, error) {
	if len(t.stamp) == 0 {
		return time.Time{}, nil
	}
	if t.first.IsZero() {
		var err error
		if t.first, err = (line{stamp: t.stamp}).time(); err != nil {
			return time.Time{}, err
		}
	}
	return t.first.Add(time.Duration(t.same)), nil
}

// maxRun is more than lines of one stamp take: conmon reads 8 KiB at once, which
// may be as many lines.
const maxRun = 512 << 10

// skipTo notes the lines right before the one at offset at that have its stamp:
// what a read from the beginning would have noted of them.
func (t *times) skipTo(f io.ReaderAt, at int64) error {
	head := make([]byte, 64) // more than any stamp
	n, err := f.ReadAt(head, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	stamp, _, ok := bytes.Cut(head[:n], space)
	if !ok {
		return nil // there is no line yet
	}
	from := max(0, at-maxRun)
	before := make([]byte, at-from)
	if _, err := f.ReadAt(before, from); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	count := 0
	for len(before) > 0 {
		begin := bytes.LastIndexByte(before[:len(before)-1], '\n') + 1
		if !bytes.HasPrefix(before[begin:], append(stamp, ' ')) {
			break
		}
		count++
		before = before[:begin]
	}
	if count > 0 {
		t.stamp, t.same = bytes.Clone(stamp), count-1
	}
	return nil
}

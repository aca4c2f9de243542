// Package linefile keeps JSON objects in a file, one a line, each behind its
// checksum: "<crc32c> <JSON>". It is what the audit spool and the journal of
// request ids are made of.
//
//	f, damage, err := linefile.Open(linefile.Options{Path: path, MaxLine: 64 << 10, What: "audit spool"}, take)
//	err = f.Append(object)        // survives the death of the process
//	err = f.SyncFunc()()          // and a power cut
//	err = f.Replace(func(add func([]byte) error) error { … }) // without what is not needed any more
//
// A tail that is not as it was written is moved to a file beside it and reported
// as [Damage]; what is before it stays. Without a path everything is in memory.
//
// Lines can be appended through a window of the file that is mapped into memory:
// the kernel has them as it has those of a write(2), without the system call.
// The file is then longer than its lines, with zeros behind them; Close cuts
// them off.
package linefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

// Suffixes of the files beside the file. There is at most one of each, so that
// damage that comes back does not fill the disk.
const (
	damagedSuffix = ".damaged"
	newSuffix     = ".new"
)

// Options configure a file.
type Options struct {
	Path    string // empty: in memory
	What    string // names the file in errors, such as "audit spool"
	MaxLine int    // bytes; a longer line is damage
	MaxTail int64  // most bytes of a damaged tail that are set aside; 0: all
	// Window is how many bytes of the file's end are mapped into memory, a multiple
	// of the page size. 0, or a system or file system that cannot: each line is
	// written by a system call.
	Window int64
}

// Damage says what could not be read.
type Damage struct {
	SetAside string // file that holds it now
	Bytes    int64
	Reason   string
}

func (d *Damage) String() string {
	return fmt.Sprintf("%s; %d bytes are in %s", d.Reason, d.Bytes, d.SetAside)
}

// File is not safe for concurrent use, except for what [File.SyncFunc] gives.
type File struct {
	opts   Options
	file   *os.File // nil in memory
	mem    []byte
	size   int64 // of the lines
	window window
	broken error // the file cannot be written any more
	line   []byte
}

// Open reads what an earlier run left and gives it line by line to take: the
// object, and the offset behind its line. Where take refuses one, everything from
// there on is damage, as it is from a line that was not written to its end.
func Open(o Options, take func(data []byte, end int64) error) (f *File, damage *Damage, err error) {
	f = &File{opts: o}
	if o.Path == "" {
		return f, nil, nil
	}
	_ = os.Remove(o.Path + newSuffix) // left by a run that was killed
	f.file, err = os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, f.wrap(fmt.Errorf("%w; the agent needs to write in its state_dir", err))
	}
	size, fault, err := scan(f.file, o.MaxLine, take)
	f.size = size
	if err == nil && fault != nil {
		damage, err = f.moveTail(size, fault)
	}
	if err != nil {
		f.file.Close()
		return nil, nil, f.wrap(err)
	}
	return f, damage, nil
}

func (f *File) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", f.opts.What, err)
}

// Size is the number of bytes of all lines.
func (f *File) Size() int64 { return f.size }

// Broken is why nothing can be written any more, nil where it can.
func (f *File) Broken() error { return f.broken }

// Append writes a line with one JSON object, which holds no newline. It survives
// the death of the process when Append returns. One that did not get through
// whole is cut off again.
func (f *File) Append(data []byte) error {
	f.line = AppendLine(f.line[:0], data)
	if f.file == nil {
		f.mem = append(f.mem, f.line...)
		f.size += int64(len(f.line))
		return nil
	}
	if f.broken != nil {
		return f.broken
	}
	if !f.window.write(f.file, f.line, f.size, f.opts.Window) {
		if _, err := f.file.WriteAt(f.line, f.size); err != nil {
			if undo := f.file.Truncate(f.size); undo != nil {
				f.broken = f.wrap(errors.Join(err, undo))
			}
			f.window.drop() // it may reach behind the new end
			return f.wrap(err)
		}
	}
	f.size += int64(len(f.line))
	if cap(f.line) > 4<<10 {
		f.line = nil // many files may share a process
	}
	return nil
}

// LineSize is what [File.Append] of data writes, in bytes.
func LineSize(data []byte) int64 { return int64(len(data)) + crcLen + 2 }

// SyncFunc gives a function that returns when all that was appended before is on
// disk. It needs no lock that guards the file: a slow disk holds nobody up. A file
// that was closed or replaced meanwhile is on disk already.
func (f *File) SyncFunc() func() error {
	file := f.file
	return func() error {
		if file == nil {
			return nil
		}
		if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
			return f.wrap(err)
		}
		return nil
	}
}

// Read gives n bytes from offset on.
func (f *File) Read(offset, n int64) ([]byte, error) {
	if f.file == nil {
		return f.mem[offset : offset+n], nil
	}
	buf := make([]byte, n)
	_, err := f.file.ReadAt(buf, offset)
	return buf, f.wrap(err)
}

// Each calls do with the object of every line from offset on, until it fails.
// The object is valid during the call.
func (f *File) Each(offset int64, do func(data []byte) error) error {
	var r io.Reader
	if f.file != nil {
		r = io.NewSectionReader(f.file, offset, f.size-offset)
	} else {
		r = bytes.NewReader(f.mem[offset:])
	}
	var failed error
	_, fault, err := scan(r, f.opts.MaxLine, func(data []byte, _ int64) error {
		failed = do(data)
		return failed
	})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return f.wrap(err)
	}
	return f.wrap(fault)
}

// SetAside moves everything from offset on to the file beside it: lines that
// were whole when they were written and are not any more.
func (f *File) SetAside(offset int64, why error) (*Damage, error) {
	if f.file == nil {
		return nil, f.wrap(why)
	}
	damage, err := f.moveTail(offset, why)
	if err != nil {
		f.broken = f.wrap(err)
		return nil, f.broken
	}
	f.size = offset
	return damage, nil
}

func (f *File) moveTail(offset int64, why error) (*Damage, error) {
	f.window.drop()
	aside := f.opts.Path + damagedSuffix
	out, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.file.Seek(offset, io.SeekStart); err != nil {
		out.Close()
		return nil, err
	}
	var in io.Reader = f.file
	if f.opts.MaxTail > 0 { // a file that grew without bound is not copied whole
		in = io.LimitReader(in, f.opts.MaxTail)
	}
	tail := &tailWriter{to: out}
	_, err = io.Copy(tail, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return nil, err
	}
	if err := f.file.Truncate(offset); err != nil {
		return nil, err
	}
	return &Damage{SetAside: aside, Bytes: tail.n, Reason: "the " + f.opts.What + " is damaged: " + why.Error()}, f.file.Sync()
}

// tailWriter leaves out zeros at the end: they are the window's.
type tailWriter struct {
	to    io.Writer
	n     int64 // written
	zeros int64 // seen since
}

func (w *tailWriter) Write(p []byte) (int, error) {
	whole := len(p)
	text := bytes.TrimRight(p, "\x00")
	if len(text) > 0 {
		for ; w.zeros > 0; w.zeros-- {
			if _, err := w.to.Write([]byte{0}); err != nil {
				return 0, err
			}
			w.n++
		}
		n, err := w.to.Write(text)
		w.n += int64(n)
		if err != nil {
			return n, err
		}
	}
	w.zeros += int64(whole - len(text))
	return whole, nil
}

// Replace writes a new file of the lines that fill adds, and puts it in the old
// one's place when it is on disk: a reader, or a power cut, finds the one or the
// other.
func (f *File) Replace(fill func(add func(data []byte) error) error) error {
	return f.wrap(f.replace(fill))
}

func (f *File) replace(fill func(add func(data []byte) error) error) (err error) {
	if f.file == nil {
		var mem []byte
		if err := fill(func(data []byte) error { mem = AppendLine(mem, data); return nil }); err != nil {
			return err
		}
		f.mem, f.size = mem, int64(len(mem))
		return nil
	}
	path := f.opts.Path + newSuffix
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			out.Close()
			_ = os.Remove(path)
		}
	}()
	w := &lineWriter{to: out}
	if err := errors.Join(fill(w.add), w.flush()); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path, f.opts.Path); err != nil {
		return err
	}
	atomicfile.SyncDir(filepath.Dir(f.opts.Path))
	f.window.drop()
	f.file.Close()
	f.file, f.size, f.broken = out, w.size, nil
	return nil
}

// Close keeps what was appended, on disk. It may be called once.
func (f *File) Close() error {
	f.mem, f.line = nil, nil
	if f.file == nil {
		return nil
	}
	f.window.drop()
	return f.wrap(errors.Join(f.file.Truncate(f.size), f.file.Sync(), f.file.Close()))
}

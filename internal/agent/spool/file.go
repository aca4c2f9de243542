package spool

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Names of the files beside the spool. There is at most one of each, so that
// damage that comes back does not fill the disk.
const (
	damagedSuffix = ".damaged"
	newSuffix     = ".new"
)

func (s *Spool) load() (*Damage, error) {
	_ = os.Remove(s.opts.Path + newSuffix) // left by a run that was killed
	file, err := os.OpenFile(s.opts.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w; the agent needs to write in its state_dir", err)
	}
	found, fault, err := readAll(file, s.opts.DeviceID)
	if err != nil {
		file.Close()
		return nil, err
	}
	s.file = file
	s.head, s.acked, s.size, s.pending, s.lost = found.head, found.acked, found.size, len(found.ends), found.lost
	var damage *Damage
	if fault != nil {
		if damage, err = s.moveTail(found.size, fault.Error()); err != nil {
			file.Close()
			return nil, err
		}
	}
	if !found.started {
		if err := s.compact(); err != nil { // writes the header
			file.Close()
			return nil, err
		}
	}
	return damage, nil
}

// readAll reads up to the first line that is not as it should be; fault says
// what is wrong with it.
func readAll(r io.Reader, device string) (found scan, fault, err error) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && len(line) == 0:
			return found, nil, nil
		case errors.Is(err, io.EOF):
			return found, errors.New("the last line was not written to its end"), nil
		case errors.Is(err, bufio.ErrBufferFull):
			return found, errors.New("a line is too long"), nil
		default:
			return found, nil, err
		}
		if fault := found.add(line, device); fault != nil {
			return found, fault, nil
		}
	}
}

// moveTail sets aside everything from offset on.
func (s *Spool) moveTail(offset int64, why string) (*Damage, error) {
	aside := s.opts.Path + damagedSuffix
	out, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = s.file.Seek(offset, io.SeekStart); err != nil {
		out.Close()
		return nil, err
	}
	// A file that grew without bound is not copied whole.
	n, err := io.Copy(out, io.LimitReader(s.file, 2*s.opts.MaxBytes))
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return nil, err
	}
	if err := s.file.Truncate(offset); err != nil {
		return nil, err
	}
	return &Damage{SetAside: aside, Bytes: n, Reason: "the audit spool is damaged: " + why}, s.file.Sync()
}

// setAsideFrom handles a line that was whole when it was written and is not any
// more.
func (s *Spool) setAsideFrom(offset int64, why error) error {
	if s.file == nil {
		return why
	}
	damage, err := s.moveTail(offset, why.Error())
	if err != nil {
		s.broken = err
		return fmt.Errorf("audit spool: %w", err)
	}
	s.size, s.pending = offset, 0
	s.peeked = nil
	_ = s.each(func([]byte) error { s.pending++; return nil })
	s.lost++ // at least
	return &DamageError{*damage}
}

// DamageError is returned by Peek for records that went bad on disk.
type DamageError struct{ Damage Damage }

func (e *DamageError) Error() string { return e.Damage.String() }

// write appends a line. One that did not get through whole is cut off again.
func (s *Spool) write(line []byte) error {
	if s.file == nil {
		s.mem = append(s.mem, line...)
		s.size += int64(len(line))
		return nil
	}
	if s.broken != nil {
		return s.broken
	}
	if _, err := s.file.WriteAt(line, s.size); err != nil {
		if undo := s.file.Truncate(s.size); undo != nil {
			s.broken = fmt.Errorf("audit spool: %w", errors.Join(err, undo))
		}
		return fmt.Errorf("audit spool: %w", err)
	}
	s.size += int64(len(line))
	return nil
}

func (s *Spool) read(offset, n int64) ([]byte, error) {
	if s.file == nil {
		return s.mem[offset : offset+n], nil
	}
	buf := make([]byte, n)
	_, err := s.file.ReadAt(buf, offset)
	return buf, err
}

// each calls f with the data of every record that is not confirmed.
func (s *Spool) each(f func(data []byte) error) error {
	if s.file == nil {
		return eachRecord(bytes.NewReader(s.mem[s.acked:]), f)
	}
	return eachRecord(io.NewSectionReader(s.file, s.acked, s.size-s.acked), f)
}

func eachRecord(r io.Reader, f func(data []byte) error) error {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := decodeLine(line)
		if err == nil && !isMark(data) {
			err = f(data)
		}
		if err != nil {
			return err
		}
	}
}

// compact cuts off what is confirmed: it writes a new file with the rest and
// puts it in the old one's place.
func (s *Spool) compact() error {
	if s.file == nil {
		s.mem, s.peeked = bytes.Clone(s.mem[s.acked:]), nil
		s.size -= s.acked
		s.acked = 0
		return nil
	}
	err := s.replaceFile()
	if err != nil {
		return fmt.Errorf("audit spool: %w", err)
	}
	return nil
}

func (s *Spool) replaceFile() (err error) {
	head, err := s.headBefore()
	if err != nil {
		return err
	}
	data, err := json.Marshal(header{Spool: formatVersion, DeviceID: s.opts.DeviceID, Head: head})
	if err != nil {
		return err
	}
	path := s.opts.Path + newSuffix
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
	w := bufio.NewWriter(out)
	n, _ := w.Write(encodeLine(data)) // a bufio.Writer keeps its first error for Flush
	start := int64(n)
	size := start
	err = s.each(func(data []byte) error { // without marks: they name offsets of the old file
		n, err := w.Write(encodeLine(data))
		size += int64(n)
		return err
	})
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path, s.opts.Path); err != nil {
		return err
	}
	syncDir(filepath.Dir(s.opts.Path))
	s.file.Close()
	s.file, s.acked, s.size, s.peeked = out, start, size, nil
	return nil
}

// headBefore is the hash of the record before the first one that is not
// confirmed.
func (s *Spool) headBefore() (string, error) {
	head, errFound := s.head, errors.New("found")
	err := s.each(func(data []byte) error {
		var record struct {
			Prev string `json:"prev"`
		}
		if err := json.Unmarshal(data, &record); err != nil {
			return err
		}
		head = record.Prev
		return errFound
	})
	if err != nil && !errors.Is(err, errFound) {
		return "", err
	}
	return head, nil
}

// syncDir makes a rename last. Not every file system can; the file itself is on
// disk already.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		d.Close()
	}
}

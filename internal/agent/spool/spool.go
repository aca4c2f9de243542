// Package spool keeps a device's audit records until the broker has them. It
// numbers and chains them: each record carries the hash of the one before, also
// across restarts, so that a gap or a change shows.
//
//	s, damage, err := spool.Open(spool.Options{Path: dir + "/audit.spool", DeviceID: "vm-device-00"})
//	err = s.Append(&record, true)             // on disk when it returns
//	batch, err := s.Peek(128, 128<<10)        // the oldest that are not confirmed
//	err = s.Confirm(len(batch))               // they are stored: forget them
//
// The file is lines of text (package linefile), so that it can be read with
// common tools: a header first, then records as they are published, and between
// them marks that say up to where they are confirmed. While it is open it ends
// with zeros. A tail that was left half written is moved to a file beside it, and
// reported.
//
// Without a path everything is kept in memory, within the same limit.
package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/linefile"
)

// DefaultMaxBytes is how much is kept by default.
const DefaultMaxBytes = 16 << 20

// ErrFull is returned for a record that does not fit. It is counted, and the
// next record that fits says how many were lost.
var ErrFull = errors.New("the audit spool is full")

// ErrClosed is returned after Close.
var ErrClosed = errors.New("the audit spool is closed")

// Options configure a spool.
type Options struct {
	Path     string // file; empty: in memory
	DeviceID string // of whom the records are; a file of another device is set aside
	MaxBytes int64  // limit of what is not confirmed; default [DefaultMaxBytes]
}

// DamageError is returned by Peek for records that went bad on disk.
type DamageError struct{ Damage linefile.Damage }

func (e *DamageError) Error() string { return e.Damage.String() }

// Spool is safe for concurrent use.
type Spool struct {
	opts Options

	mu      sync.Mutex
	file    *linefile.File
	acked   int64 // offset of the first byte that is not confirmed
	pending int
	peeked  []int64 // offsets behind the records that Peek gave last
	head    string  // hash of the last record
	seq     uint64  // of the last record of this run
	lost    uint64  // since the last record
	closed  bool
}

// window is how much of the file is mapped into memory, in bytes: about 50
// records. It counts as resident where it was written to, and many agents may
// share a process.
const window = 32 << 10

// Open reads what an earlier run left. A damaged tail, or a file of another
// device, is set aside and told by damage; err is for a file that cannot be
// used at all.
func Open(o Options) (s *Spool, damage *linefile.Damage, err error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	s = &Spool{opts: o}
	var found scan
	s.file, damage, err = linefile.Open(linefile.Options{
		Path: o.Path, What: "audit spool", MaxLine: maxLine, MaxTail: 2 * o.MaxBytes, Window: window,
	}, func(data []byte, end int64) error { return found.add(data, end, o.DeviceID) })
	if err != nil {
		return nil, nil, err
	}
	s.head, s.acked, s.pending, s.lost = found.head, found.acked, len(found.ends), found.lost
	if o.Path != "" && !found.started {
		if err := s.compact(); err != nil { // writes the header
			return nil, nil, errors.Join(err, s.file.Close())
		}
	}
	return s, damage, nil
}

// Append numbers and chains rec, filling in Schema, Seq, Prev and Lost, and
// keeps it. An urgent record is on disk when Append returns, and may use the
// half of the room that is held back from the others. Where it
// returns an error the record may be lost; the next one says so.
func (s *Spool) Append(rec *command.AuditRecord, urgent bool) error {
	sync, err := s.append(rec, urgent)
	if err != nil || sync == nil {
		return err
	}
	return sync() // outside the lock: a slow disk does not hold up pings
}

// append gives what puts an urgent record on disk.
func (s *Spool) append(rec *command.AuditRecord, urgent bool) (sync func() error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	rec.Schema, rec.Seq, rec.Prev, rec.Lost = command.Schema, s.seq+1, s.head, s.lost
	data, err := json.Marshal(rec)
	if err == nil {
		err = s.keep(data, urgent)
	}
	if err != nil {
		s.lost++
		return nil, err
	}
	s.seq++
	s.head = command.AuditHash(data)
	s.lost = 0
	s.pending++
	if urgent {
		sync = s.file.SyncFunc()
	}
	return sync, nil
}

func (s *Spool) keep(data []byte, urgent bool) error {
	limit := s.opts.MaxBytes
	if !urgent {
		limit = s.passing()
	}
	if s.used()+linefile.LineSize(data) > limit {
		return ErrFull
	}
	return s.file.Append(data)
}

// used is the size of what is not confirmed.
func (s *Spool) used() int64 { return s.file.Size() - s.acked }

// passing is what records that are not urgent may fill: anybody can make as many
// of them as they like, and what changes something must still find room.
func (s *Spool) passing() int64 { return s.opts.MaxBytes / 2 }

// reserve is the room held back for commands that were let in.
func (s *Spool) reserve() int64 { return s.opts.MaxBytes / 8 }

// Room tells whether a command that changes something may be let in: all that
// it will have to record still fits.
func (s *Spool) Room() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && s.file.Broken() == nil && s.used()+typicalRecord <= s.opts.MaxBytes-s.reserve()
}

// typicalRecord is about what a record takes, in bytes.
const typicalRecord = 1 << 10

// Pending is how many records are not confirmed.
func (s *Spool) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending
}

// Lost is how many records could not be kept since the last one that was.
func (s *Spool) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Peek gives the oldest records that are not confirmed, as they are published:
// at least one if there is any, else at most so many records and about so many
// bytes. A [*DamageError] tells of records that went bad on disk; they are gone.
func (s *Spool) Peek(records int, size int64) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	window, err := s.file.Read(s.acked, min(size+maxLine, s.used()))
	if err != nil {
		return nil, err
	}
	var batch [][]byte
	s.peeked = s.peeked[:0]
	for at := int64(0); at < int64(len(window)) && len(batch) < records && at < size; {
		end := at + int64(bytes.IndexByte(window[at:], '\n')) + 1
		data, err := linefile.DecodeLine(window[at:max(at, end)])
		if err != nil {
			if end <= at && int64(len(window)) < s.used() {
				break // only the window ends here
			}
			return batch, s.setAsideFrom(s.acked+at, err)
		}
		at = end
		if !isMark(data) {
			batch = append(batch, data)
			s.peeked = append(s.peeked, s.acked+at)
		}
	}
	return batch, nil
}

// setAsideFrom handles a line that was whole when it was written and is not any
// more.
func (s *Spool) setAsideFrom(offset int64, why error) error {
	damage, err := s.file.SetAside(offset, why)
	if err != nil {
		return err
	}
	s.pending, s.peeked = 0, nil
	_ = s.each(func([]byte) error { s.pending++; return nil })
	s.lost++ // at least
	return &DamageError{*damage}
}

// each calls do with every record that is not confirmed.
func (s *Spool) each(do func(data []byte) error) error {
	return s.file.Each(s.acked, func(data []byte) error {
		if isMark(data) {
			return nil
		}
		return do(data)
	})
}

// Confirm forgets the first n records of what Peek gave last.
func (s *Spool) Confirm(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	n = min(n, len(s.peeked))
	if n == 0 {
		return nil
	}
	s.acked = s.peeked[n-1]
	s.pending -= n
	s.peeked = nil
	// The front is cut off once it is worth the writing of the rest.
	if s.opts.Path == "" || s.acked >= min(1<<20, s.opts.MaxBytes/4) && s.acked >= s.used() {
		if err := s.compact(); err == nil || s.opts.Path == "" {
			return err
		}
		// Where the file cannot be made smaller it says itself what is confirmed.
	}
	return s.file.Append(mark{Confirmed: s.acked}.encode())
}

// compact cuts off what is confirmed.
func (s *Spool) compact() error {
	var first int64 // offset of the first record
	err := s.file.Replace(func(add func([]byte) error) error {
		if s.opts.Path != "" {
			head, err := s.headBefore()
			if err != nil {
				return err
			}
			data, err := json.Marshal(header{Spool: formatVersion, DeviceID: s.opts.DeviceID, Head: head})
			if err != nil {
				return err
			}
			first = linefile.LineSize(data)
			if err := add(data); err != nil {
				return err
			}
		}
		return s.each(add) // without marks: they name offsets of the old file
	})
	if err != nil {
		return err
	}
	s.acked, s.peeked = first, nil
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

// Close keeps what is not confirmed for the next run. It may be called twice.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if s.opts.Path != "" && s.lost > 0 {
		err = s.file.Append(mark{Confirmed: s.acked, Lost: s.lost}.encode())
	}
	return errors.Join(err, s.file.Close())
}

// Package spool keeps a device's audit records until the broker has them. It
// numbers and chains them: each record carries the hash of the one before, also
// across restarts, so that a gap or a change shows.
//
//	s, damage, err := spool.Open(spool.Options{Path: dir + "/audit.spool", DeviceID: "vm-device-00"})
//	err = s.Append(&record, true)             // on disk when it returns
//	batch, err := s.Peek(128, 128<<10)        // the oldest that are not confirmed
//	err = s.Confirm(len(batch))               // they are stored: forget them
//
// The file is lines of text, "<crc32c> <JSON>", so that it can be read with
// common tools: a header first, then records as they are published, and between
// them marks that say up to where they are confirmed. A tail that a power cut
// left half written is moved to a file beside it, and reported.
//
// Without a path everything is kept in memory, within the same limit.
package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/harmony-fleet/fleet/command"
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

// Damage says what could not be read when the spool was opened.
type Damage struct {
	SetAside string // file that holds it now
	Bytes    int64
	Reason   string
}

func (d *Damage) String() string {
	return fmt.Sprintf("%s; %d bytes are in %s", d.Reason, d.Bytes, d.SetAside)
}

// Spool is safe for concurrent use.
type Spool struct {
	opts Options

	mu      sync.Mutex
	file    *os.File // nil in memory
	mem     []byte
	acked   int64 // offset of the first byte that is not confirmed
	size    int64
	pending int
	peeked  []int64 // offsets behind the records that Peek gave last
	head    string  // hash of the last record
	seq     uint64  // of the last record of this run
	lost    uint64  // since the last record
	broken  error   // the file cannot be written any more
	closed  bool
}

// Open reads what an earlier run left. A damaged tail, or a file of another
// device, is set aside and told by damage; err is for a file that cannot be
// used at all.
func Open(o Options) (s *Spool, damage *Damage, err error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	s = &Spool{opts: o}
	if o.Path == "" {
		return s, nil, nil
	}
	if damage, err = s.load(); err != nil {
		return nil, nil, fmt.Errorf("audit spool: %w", err)
	}
	return s, damage, nil
}

// Append numbers and chains rec, filling in Schema, Seq, Prev and Lost, and
// keeps it. An urgent record is on disk when Append returns, and may use the
// room that is held back for the ends of commands that were let in. Where it
// returns an error the record may be lost; the next one says so.
func (s *Spool) Append(rec *command.AuditRecord, urgent bool) error {
	file, err := s.append(rec, urgent)
	if err != nil || file == nil || !urgent {
		return err
	}
	// Outside the lock: a slow disk does not hold up pings. A file that was closed
	// meanwhile has been replaced by one that is on disk already.
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("audit spool: %w", err)
	}
	return nil
}

func (s *Spool) append(rec *command.AuditRecord, urgent bool) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	rec.Schema, rec.Seq, rec.Prev, rec.Lost = command.Schema, s.seq+1, s.head, s.lost
	data, err := json.Marshal(rec)
	if err == nil {
		err = s.keep(encodeLine(data), urgent)
	}
	if err != nil {
		s.lost++
		return nil, err
	}
	s.seq++
	s.head = command.AuditHash(data)
	s.lost = 0
	s.pending++
	return s.file, nil
}

func (s *Spool) keep(line []byte, urgent bool) error {
	limit := s.opts.MaxBytes
	if !urgent {
		limit -= s.reserve()
	}
	if s.size-s.acked+int64(len(line)) > limit {
		return ErrFull
	}
	return s.write(line)
}

// reserve is the room held back for commands that were let in.
func (s *Spool) reserve() int64 { return s.opts.MaxBytes / 8 }

// Room tells whether a command that changes something may be let in: all that
// it will have to record still fits.
func (s *Spool) Room() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken == nil && !s.closed && s.size-s.acked+typicalRecord <= s.opts.MaxBytes-s.reserve()
}

// typicalRecord is about what a record takes, in bytes: where pings no longer
// fit, nothing else is let in either.
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
	window, err := s.read(s.acked, min(size+maxLine, s.size-s.acked))
	if err != nil {
		return nil, fmt.Errorf("audit spool: %w", err)
	}
	var batch [][]byte
	s.peeked = s.peeked[:0]
	for at := int64(0); at < int64(len(window)) && len(batch) < records && at < size; {
		end := at + int64(bytes.IndexByte(window[at:], '\n')) + 1
		data, err := decodeLine(window[at:max(at, end)])
		if err != nil {
			if end <= at && int64(len(window)) < s.size-s.acked {
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
	if s.file == nil || s.acked >= min(1<<20, s.opts.MaxBytes/4) && s.acked >= s.size-s.acked {
		return s.compact()
	}
	return s.write(encodeLine(mark{Confirmed: s.acked}.encode()))
}

// Close keeps what is not confirmed for the next run. It may be called twice.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.mem = nil
	if s.file == nil {
		return nil
	}
	var err error
	if s.lost > 0 {
		err = s.write(encodeLine(mark{Confirmed: s.acked, Lost: s.lost}.encode()))
	}
	return errors.Join(err, s.file.Sync(), s.file.Close())
}

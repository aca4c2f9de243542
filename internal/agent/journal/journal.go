// Package journal remembers on disk which requests that change something have
// started, and how they ended, so that a restart of the agent runs none of them
// again and still tells what became of them.
//
//	j, started, damage, err := journal.Open(journal.Options{Path: dir + "/requests.journal", DeviceID: id})
//	err = j.Begin(entry)                  // on disk, a power cut included, when it returns
//	err = j.End(entry.Key, outcome)       // survives the death of the process
//	err = j.Forget(entry.Key)             // it did not run after all, or its time is over
//
// The file is lines (package linefile): a header, then one for each event. It is
// written anew when most of it is of requests that are forgotten. Without a path
// nothing is kept.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/linefile"
)

// Key names a request.
type Key struct {
	UID string `json:"uid"` // of the verified caller
	ID  string `json:"id"`  // request id
}

// Entry is a request that has started.
type Entry struct {
	Key
	User     string       `json:"user,omitempty"`    // of the caller, as audit has it
	Account  string       `json:"account,omitempty"` // likewise
	Verb     command.Verb `json:"verb"`
	Digest   string       `json:"digest"` // of the payload
	Deadline time.Time    `json:"deadline"`
	// Ended is how it ended; nil: that is not known.
	Ended *Outcome `json:"-"`
}

// Outcome is how a request ended.
type Outcome struct {
	// Reply is the verb's reply object as it was sent; nil where Error was.
	Reply json.RawMessage     `json:"reply,omitempty"`
	Error *command.ErrorReply `json:"error,omitempty"`
	// Failure is why the process of a session did not end by itself; nil where it
	// did.
	Failure *command.ErrorReply `json:"failure,omitempty"`
	// ExitCode is that of its process; nil where there was none, or it is not known.
	ExitCode *int `json:"exit_code,omitempty"`
	// Open tells that the process went on after the reply, and how that ended is
	// not known (yet).
	Open bool `json:"open,omitempty"`
}

// Options configure a journal.
type Options struct {
	Path     string // file; empty: nothing is kept
	DeviceID string // whose requests; a file of another device is set aside
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("the journal is closed")

const (
	formatVersion = 1
	// maxLine holds a reply of the greatest size.
	maxLine = command.MaxDocument + 64<<10
	// compactFrom is the size in bytes from which the file is written anew, once at
	// most half of it is needed.
	compactFrom = 64 << 10
)

// line is a line of the file; exactly one of its fields is set.
type line struct {
	Header *header `json:"journal,omitempty"`
	Begin  *Entry  `json:"begin,omitempty"`
	End    *end    `json:"end,omitempty"`
	Forget *Key    `json:"forget,omitempty"`
}

type header struct {
	Version  int    `json:"version"`
	DeviceID string `json:"device_id"`
}

type end struct {
	Key
	Outcome
}

// Journal is safe for concurrent use.
type Journal struct {
	opts Options

	mu     sync.Mutex
	file   *linefile.File
	kept   map[Key]*kept
	needed int64 // bytes of the lines of kept
	closed bool
}

// kept is what the file must say of a request.
type kept struct {
	Entry
	size int64
}

// Open reads what an earlier run left: all that started and was not forgotten. A
// damaged tail, or a file of another device, is set aside and told by damage; err
// is for a file that cannot be used at all.
func Open(o Options) (j *Journal, started []Entry, damage *linefile.Damage, err error) {
	j = &Journal{opts: o, kept: map[Key]*kept{}}
	if o.Path == "" {
		return j, nil, nil, nil
	}
	headed := false
	j.file, damage, err = linefile.Open(linefile.Options{Path: o.Path, What: "journal of requests", MaxLine: maxLine, MaxTail: 64 << 20},
		func(data []byte, _ int64) error {
			var l line
			if err := json.Unmarshal(data, &l); err != nil {
				return errors.New("a line is not readable")
			}
			if !headed {
				headed = true
				return l.Header.check(o.DeviceID)
			}
			if err := j.check(l); err != nil {
				return err
			}
			j.take(l, linefile.LineSize(data))
			return nil
		})
	if err != nil {
		return nil, nil, nil, err
	}
	if err := j.compact(); err != nil { // also writes the header of a new file
		return nil, nil, nil, errors.Join(err, j.file.Close())
	}
	for _, k := range j.kept {
		started = append(started, k.Entry)
	}
	return j, started, damage, nil
}

func (h *header) check(device string) error {
	switch {
	case h == nil || h.Version != formatVersion:
		return errors.New("the first line is not the header of a journal of this version")
	case h.DeviceID != device:
		return fmt.Errorf("it belongs to device %.63q", h.DeviceID)
	}
	return nil
}

// check refuses a line that does not fit those before it.
func (j *Journal) check(l line) error {
	switch {
	case l.Begin != nil && j.kept[l.Begin.Key] != nil:
		return errors.New("a request begins twice")
	case l.End != nil && j.kept[l.End.Key] == nil:
		return errors.New("a request ends that did not begin")
	case l.Begin == nil && l.End == nil && l.Forget == nil:
		return errors.New("a line says nothing")
	}
	return nil
}

// take adds what a line of so many bytes says.
func (j *Journal) take(l line, size int64) {
	switch {
	case l.Begin != nil:
		j.kept[l.Begin.Key] = &kept{Entry: *l.Begin, size: size}
		j.needed += size
	case l.End != nil:
		k := j.kept[l.End.Key]
		outcome := l.End.Outcome
		k.Ended = &outcome
		k.size += size
		j.needed += size
	case l.Forget != nil:
		if k := j.kept[*l.Forget]; k != nil {
			j.needed -= k.size
			delete(j.kept, *l.Forget)
		}
	}
}

// Begin keeps a request that is about to start. It is on disk when Begin returns
// without an error; with one, the request must not start.
func (j *Journal) Begin(e Entry) error {
	sync, err := j.append(line{Begin: &e})
	if err != nil || sync == nil {
		return err
	}
	if err := sync(); err != nil {
		return errors.Join(err, j.Forget(e.Key)) // it may be tried again
	}
	return nil
}

// End keeps how a request ended; a later one replaces it. After a power cut it
// may be lost: the request has started then, and its result is not known.
func (j *Journal) End(key Key, o Outcome) error {
	_, err := j.append(line{End: &end{key, o}})
	return err
}

// Forget takes a request out.
func (j *Journal) Forget(key Key) error {
	_, err := j.append(line{Forget: &key})
	return err
}

func (j *Journal) append(l line) (sync func() error, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return nil, ErrClosed
	case j.file == nil:
		return nil, nil
	}
	// A line that does not fit would be damage to the next run.
	if err := j.check(l); err != nil {
		return nil, fmt.Errorf("journal of requests: %w", err)
	}
	data, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("journal of requests: %w", err)
	}
	if err := j.file.Append(data); err != nil {
		return nil, err
	}
	j.take(l, linefile.LineSize(data))
	if j.file.Size() > compactFrom && j.file.Size() > 2*j.needed {
		// The line is kept whether or not the file can be made smaller; where it
		// cannot, the next line tries again.
		_ = j.compact()
	}
	return j.file.SyncFunc(), nil
}

// compact writes the file anew with what is needed.
func (j *Journal) compact() error {
	var needed int64
	sizes := make(map[Key]int64, len(j.kept))
	err := j.file.Replace(func(add func([]byte) error) error {
		put := func(l line) (int64, error) {
			data, err := json.Marshal(l)
			if err != nil {
				return 0, err
			}
			return linefile.LineSize(data), add(data)
		}
		if _, err := put(line{Header: &header{formatVersion, j.opts.DeviceID}}); err != nil {
			return err
		}
		for key, k := range j.kept {
			n, err := put(line{Begin: &k.Entry})
			if err != nil {
				return err
			}
			if k.Ended != nil {
				m, err := put(line{End: &end{key, *k.Ended}})
				if err != nil {
					return err
				}
				n += m
			}
			sizes[key] = n
			needed += n
		}
		return nil
	})
	if err != nil {
		return err
	}
	for key, n := range sizes {
		j.kept[key].size = n
	}
	j.needed = needed
	return nil
}

// Close keeps everything for the next run. It may be called twice.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.file == nil {
		j.closed = true
		return nil
	}
	j.closed = true
	return j.file.Close()
}

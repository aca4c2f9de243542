package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/harmony-fleet/fleet/command"
)

// maxLine bounds a line of the file, in bytes; the broker takes records of at
// most 16 KiB.
const maxLine = 64 << 10

// header is the first line. Head is the hash of the last record before those
// in the file, so that the chain goes on though they are gone.
type header struct {
	Spool    int    `json:"spool"` // version of the format
	DeviceID string `json:"device_id"`
	Head     string `json:"head"`
}

const formatVersion = 1

// mark says that everything before this offset of the file is confirmed, and
// how many records were lost since the one before it.
type mark struct {
	Confirmed int64  `json:"confirmed"`
	Lost      uint64 `json:"lost,omitempty"`
}

var markPrefix = []byte(`{"confirmed":`)

func isMark(data []byte) bool { return bytes.HasPrefix(data, markPrefix) }

func (m mark) encode() []byte {
	data, _ := json.Marshal(m) // numbers always marshal
	return data
}

// scan is what reading a file line by line finds.
type scan struct {
	started bool
	header  header
	head    string
	lost    uint64
	acked   int64
	size    int64   // of the lines so far
	ends    []int64 // of the records not confirmed, in order
}

// add takes the next line, which ends at the offset end.
func (s *scan) add(data []byte, end int64, device string) error {
	switch {
	case !s.started:
		if err := json.Unmarshal(data, &s.header); err != nil || s.header.Spool != formatVersion {
			return errors.New("the first line is not the header of an audit spool of this version")
		}
		if s.header.DeviceID != device {
			return fmt.Errorf("it belongs to device %.63q", s.header.DeviceID)
		}
		s.started = true
		s.head, s.acked = s.header.Head, end
	case isMark(data):
		var m mark
		if err := json.Unmarshal(data, &m); err != nil || m.Confirmed < s.acked || m.Confirmed > s.size {
			return errors.New("a mark is out of place")
		}
		s.acked, s.lost = m.Confirmed, m.Lost
		for len(s.ends) > 0 && s.ends[0] <= s.acked {
			s.ends = s.ends[1:]
		}
	default:
		record, err := command.DecodeDocument[command.AuditRecord](data)
		if err != nil {
			return errors.New("a line is not an audit record")
		}
		if record.Prev != s.head {
			return errors.New("a record does not follow the one before")
		}
		s.head, s.lost = command.AuditHash(data), 0
		s.ends = append(s.ends, end)
	}
	s.size = end
	return nil
}

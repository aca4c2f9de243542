package spool

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/harmony-fleet/fleet/command"
)

// maxLine bounds a line of the file, in bytes; the broker takes records of at
// most 16 KiB.
const maxLine = 64 << 10

const crcLen = 8 // hex digits

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeLine frames one JSON object. JSON as encoding/json writes it holds no
// newline.
func encodeLine(data []byte) []byte {
	line := make([]byte, 0, crcLen+1+len(data)+1)
	sum := crc32.Checksum(data, castagnoli)
	line = hex.AppendEncode(line, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	line = append(line, ' ')
	line = append(line, data...)
	return append(line, '\n')
}

// decodeLine takes a line apart. The data is part of line.
func decodeLine(line []byte) ([]byte, error) {
	if len(line) < crcLen+2 || line[crcLen] != ' ' || line[len(line)-1] != '\n' {
		return nil, errors.New("a line is not complete")
	}
	data := line[crcLen+1 : len(line)-1]
	var sum [4]byte
	if _, err := hex.Decode(sum[:], line[:crcLen]); err != nil {
		return nil, errors.New("a line has no checksum")
	}
	want := uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	if crc32.Checksum(data, castagnoli) != want {
		return nil, errors.New("a line has a wrong checksum")
	}
	return data, nil
}

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
	size    int64   // of the part that is whole
	ends    []int64 // of the records not confirmed, in order
}

// add takes the next line, including its newline.
func (s *scan) add(line []byte, device string) error {
	data, err := decodeLine(line)
	if err != nil {
		return err
	}
	end := s.size + int64(len(line))
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

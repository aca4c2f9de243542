package workload

import (
	"bytes"
	"errors"
	"time"

	"github.com/harmony-fleet/fleet/internal/engine"
)

// pieces takes an engine's output apart that has a time before each piece (a line,
// or a part of a long one), as [engine.LogsOptions].Timestamps asks for. The
// times say where to go on after a break, whether or not the reader wants them.
type pieces struct {
	show  bool // each line is to begin with its time
	write func(engine.Output, []byte) error
	// from is where an earlier read of the same output ended: what it had is left out.
	from position
	// at is where this one is.
	at position

	head     []byte // the time, as far as it came
	inHead   bool
	dropping bool
	midLine  map[engine.Output]bool
	buf      []byte
}

// position is a place in a container's output: the time of the last piece, and
// how many pieces of that time there were up to it. Podman's times are of whole
// seconds.
type position struct {
	time  time.Time
	count int
}

var errNoTimes = errors.New("the engine's output does not have the times that were asked for")

// maxHead is more than any time that an engine writes.
const maxHead = 64

// take takes some of the output; begins is true with the first bytes of a piece.
func (p *pieces) take(out engine.Output, begins bool, b []byte) error {
	if begins {
		p.head, p.inHead = p.head[:0], true
	}
	if p.inHead {
		head, rest, whole := bytes.Cut(b, []byte{' '})
		if p.head = append(p.head, head...); len(p.head) > maxHead {
			return errNoTimes
		}
		if !whole {
			return nil
		}
		p.inHead, b = false, rest
		at, err := time.Parse(time.RFC3339Nano, string(p.head))
		if err != nil {
			return errNoTimes
		}
		p.note(at)
		if !p.dropping && p.show && !p.midLine[out] {
			p.buf = append(at.UTC().AppendFormat(p.buf[:0], stampLayout), ' ')
			b = append(p.buf, b...)
			p.buf = b
		}
	}
	if p.dropping || len(b) == 0 {
		return nil
	}
	if p.midLine == nil {
		p.midLine = map[engine.Output]bool{}
	}
	p.midLine[out] = b[len(b)-1] != '\n'
	return p.write(out, b)
}

// note counts a piece, and tells by dropping whether the earlier read had it.
func (p *pieces) note(at time.Time) {
	if !at.Equal(p.at.time) {
		p.at = position{time: at}
	}
	p.at.count++
	p.dropping = at.Equal(p.from.time) && p.at.count <= p.from.count
}

// stampLayout keeps all nine digits, so that times compare as text too.
const stampLayout = "2006-01-02T15:04:05.000000000Z"

package session

import (
	"sync"

	"github.com/harmony-fleet/fleet/command"
)

// output is what a session has read from its source and the caller has not
// acknowledged yet, in order. Its memory is the bytes in it, rounded up to a
// block: a chunk of one byte does not take the room of a full one.
type output struct {
	limit    int64 // how many bytes the credit allows in all, from the beginning
	appended int64 // bytes taken in, from the beginning
	acked    int64 // bytes acknowledged, from the beginning
	seq      uint64
	ackSeq   uint64
	chunks   []chunk // not acknowledged; the first sent of them have been sent
	sent     int
	sentSeq  uint64 // highest number ever sent
	tail     *block // where the next bytes go, if there is room
}

type chunk struct {
	seq    uint64
	stream command.Stream
	data   []byte
	block  *block
	end    command.EndReason // data is the end's payload
}

// block is memory that several chunks share. It goes back to the pool with the
// last reference: of its chunks, of the output whose tail it is, and of a send
// under way.
type block struct {
	refs int
	used int
	buf  [command.MaxChunk]byte
}

var blocks = sync.Pool{New: func() any { return new(block) }}

func newBlock() *block {
	b := blocks.Get().(*block)
	b.refs, b.used = 1, 0
	return b
}

func (b *block) release() {
	if b.refs--; b.refs == 0 {
		blocks.Put(b)
	}
}

// room is how many bytes may be taken in now.
func (o *output) room() int64 {
	if len(o.chunks) >= command.MaxUnacked && !o.extensible() {
		return 0
	}
	return max(0, o.limit-o.appended)
}

// extensible tells whether the last chunk can take more: one that was ever sent
// cannot, since the caller may have it.
func (o *output) extensible() bool {
	n := len(o.chunks)
	return n > 0 && o.chunks[n-1].seq > o.sentSeq && o.chunks[n-1].block == o.tail && o.tail.used < len(o.tail.buf)
}

// append takes in as much of p as there is room for. Bytes that follow others of
// the same stream before those were sent go into the same chunk, so that a source
// of many small writes costs few messages when the network is the slower one.
func (o *output) append(stream command.Stream, p []byte) (n int) {
	for n < len(p) {
		part := p[n:]
		if room := o.room(); int64(len(part)) > room {
			part = part[:room]
		}
		if len(part) == 0 {
			break
		}
		if o.tail == nil || o.tail.used == len(o.tail.buf) {
			if o.tail != nil {
				o.tail.release()
			}
			o.tail = newBlock()
		}
		b := o.tail
		from := b.used
		part = part[:copy(b.buf[from:], part)]
		last := len(o.chunks) - 1
		if o.extensible() && o.chunks[last].stream == stream {
			c := &o.chunks[last]
			c.data = c.data[:len(c.data)+len(part)]
		} else {
			if len(o.chunks) >= command.MaxUnacked {
				break
			}
			o.seq++
			b.refs++
			o.chunks = append(o.chunks, chunk{seq: o.seq, stream: stream, block: b, data: b.buf[from : from+len(part)]})
		}
		b.used += len(part)
		n += len(part)
		o.appended += int64(len(part))
	}
	return n
}

// end puts the last message behind everything. It needs no credit.
func (o *output) end(reason command.EndReason, payload []byte) {
	if o.tail != nil {
		o.tail.release()
		o.tail = nil
	}
	b := newBlock()
	b.used = copy(b.buf[:], payload)
	o.seq++
	o.chunks = append(o.chunks, chunk{seq: o.seq, end: reason, block: b, data: b.buf[:b.used]})
}

// next is the chunk to send now. The caller releases its block.
func (o *output) next() (chunk, bool) {
	if o.sent == len(o.chunks) {
		return chunk{}, false
	}
	c := o.chunks[o.sent]
	o.sent++
	o.sentSeq = max(o.sentSeq, c.seq)
	c.block.refs++
	return c, true
}

// rewind has everything that is not acknowledged sent again.
func (o *output) rewind() { o.sent = 0 }

// grant takes an acknowledgement and a credit in. Both only ever grow: a copy
// that comes late, or from another connection, takes nothing back. It is false
// for an acknowledgement of what was never sent.
func (o *output) grant(ack uint64, credit, most int64) bool {
	if ack > o.sentSeq {
		return false
	}
	if ack < o.ackSeq {
		return true
	}
	n := 0
	for n < len(o.chunks) && o.chunks[n].seq <= ack {
		o.acked += int64(len(o.chunks[n].data))
		o.chunks[n].block.release()
		n++
	}
	if n > 0 {
		rest := copy(o.chunks, o.chunks[n:])
		clear(o.chunks[rest:])
		o.chunks = o.chunks[:rest]
		o.sent = max(0, o.sent-n)
		o.ackSeq = ack
	}
	o.limit = max(o.limit, o.acked+min(max(credit, 0), most))
	return true
}

// drop lets go of everything.
func (o *output) drop() {
	for _, c := range o.chunks {
		c.block.release()
	}
	if o.tail != nil {
		o.tail.release()
	}
	o.chunks, o.tail, o.sent = nil, nil, 0
}

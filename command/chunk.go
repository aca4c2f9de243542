package command

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Times of a session. A caller that says nothing for SessionLease loses it; a
// device that says nothing for as long is given up.
const (
	SessionKeepalive = 10 * time.Second // either end says something at least so often
	SessionLease     = 30 * time.Second
)

// MaxUnacked is how many chunks a device sends beyond the last acknowledged one,
// however small they are. A caller acknowledges at least every MaxUnacked/4.
const MaxUnacked = 1024

// InputWindow is how many bytes of standard input a caller may have in flight
// before the first [Progress] says otherwise.
const InputWindow = 256 << 10

// Chunk is what the headers of a message on [SessionSubject] say of its payload.
// Exactly one of Stream and End is set.
type Chunk struct {
	Seq    uint64    // from 1; the end counts too; 0 for StreamProgress
	Stream Stream    // whose bytes the payload holds
	End    EndReason // the payload is a [SessionEnd]
}

// Write sets the headers of c in h, which may be a nats.Header.
func (c Chunk) Write(h map[string][]string) {
	if c.Seq != 0 {
		WriteSeq(h, c.Seq)
	}
	if c.End != "" {
		h[HeaderEnd] = []string{string(c.End)}
		return
	}
	h[HeaderStream] = []string{string(c.Stream)}
}

// ReadChunk reads the headers of a message of a session. Only a device can
// publish there, so what does not parse is a fault of that device, or the
// message of a newer protocol.
func ReadChunk(h map[string][]string) (Chunk, error) {
	var c Chunk
	get := func(name string) string {
		if values := h[name]; len(values) > 0 {
			return values[0]
		}
		return ""
	}
	c.End, c.Stream = EndReason(get(HeaderEnd)), Stream(get(HeaderStream))
	if seq := get(HeaderSeq); seq != "" {
		var err error
		if c.Seq, err = ReadSeq(seq); err != nil {
			return Chunk{}, err
		}
	}
	switch {
	case c.End != "" && c.Stream != "":
		return Chunk{}, fmt.Errorf("session output has both %s and %s", HeaderEnd, HeaderStream)
	case c.End != "" && !c.End.Known():
		return Chunk{}, fmt.Errorf("header %s is %s", HeaderEnd, quote(string(c.End)))
	case c.End == "" && !c.Stream.Known():
		return Chunk{}, fmt.Errorf("header %s is %s", HeaderStream, quote(string(c.Stream)))
	case (c.Seq == 0) != (c.Stream == StreamProgress):
		return Chunk{}, fmt.Errorf("header %s is %d in a message of %s", HeaderSeq, c.Seq, quote(string(c.Stream)))
	}
	if i := slices.Index(streams, c.Stream); i >= 0 {
		c.Stream = streams[i] // a part of the header would keep the whole of it in memory
	}
	return c, nil
}

// WriteSeq sets the number of a message, which is from 1, in h.
func WriteSeq(h map[string][]string, n uint64) {
	h[HeaderSeq] = []string{strconv.FormatUint(n, 10)}
}

// ControlSeq is the number of a message of session control; 0: it has none.
func ControlSeq(h map[string][]string) (uint64, error) {
	switch values := h[HeaderSeq]; len(values) {
	case 0:
		return 0, nil
	case 1:
		return ReadSeq(values[0])
	default:
		return 0, fmt.Errorf("header %s is given %d times", HeaderSeq, len(values))
	}
}

// ReadSeq reads the number of a chunk, which is from 1.
func ReadSeq(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("header %s is %s, want a number from 1", HeaderSeq, quote(s))
	}
	return n, nil
}

// Known tells whether s is a stream of this protocol.
func (s Stream) Known() bool { return slices.Contains(streams, s) }

var streams = []Stream{StreamStdout, StreamStderr, StreamPTY, StreamProgress}

// Known tells whether r is a reason of this protocol.
func (r EndReason) Known() bool {
	switch r {
	case EndEOF, EndCancelled, EndLeaseExpired, EndError:
		return true
	}
	return false
}

// Progress is the payload of a message of [StreamProgress]: what a device says
// beside its output. It is sent every [SessionKeepalive] where nothing else is,
// and whenever more standard input may come.
type Progress struct {
	Sent   uint64 `json:"sent"`             // number of the last chunk sent: a caller that has fewer asks again
	Ack    uint64 `json:"ack"`              // last number of standard input received without a gap
	Credit int64  `json:"credit"`           // bytes of standard input the caller may have in flight beyond it
	Resend bool   `json:"resend,omitempty"` // send what is after ack again
	// Notice says, for people, that something happened to the source which output
	// does not show: the container was replaced while its logs were followed.
	Notice string `json:"notice,omitempty"`
}

// SessionPayload is a payload of session control or output.
type SessionPayload interface {
	Credit | Resize | Signal | Progress | SessionEnd
}

// DecodeSession reads a payload of session control or output. Unknown fields are
// ignored.
func DecodeSession[T SessionPayload](data []byte) (T, error) {
	var v T
	if len(data) > MaxChunk {
		return v, fmt.Errorf("session payload has %d bytes, more than the %d allowed", len(data), MaxChunk)
	}
	return v, decodeObject(data, &v, false)
}

package engine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Output is which stream of a container or process bytes belong to, as the
// engine numbers them.
type Output byte

// The outputs.
const (
	Stdout Output = 1
	Stderr Output = 2
)

// demuxBuffer is how much is read from the engine at once.
const demuxBuffer = 64 << 10

// Demux takes the engine's multiplexed stream apart: each frame has a header of
// eight bytes, the stream's number and the length. The bytes that write gets are
// valid only during the call. It ends without an error where r does, between two
// frames.
func Demux(r io.Reader, write func(Output, []byte) error) error {
	return DemuxFrames(r, func(out Output, _ bool, b []byte) error { return write(out, b) })
}

// DemuxFrames is Demux for those to whom frames matter, as with
// [LogsOptions].Timestamps: begins is true with the first bytes of each.
func DemuxFrames(r io.Reader, write func(out Output, begins bool, b []byte) error) error {
	br := bufio.NewReaderSize(r, demuxBuffer)
	var header [8]byte
	for {
		if _, err := io.ReadFull(br, header[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		out := Output(header[0])
		if out == 0 {
			out = Stdout // what was typed, echoed
		}
		if out > Stderr || header[1]|header[2]|header[3] != 0 {
			return fmt.Errorf("the engine's stream is out of step: frame header % x", header)
		}
		begins := true
		for left := int(binary.BigEndian.Uint32(header[4:])); left > 0; {
			n, err := some(br, left, func(b []byte) error { return write(out, begins, b) })
			if err != nil {
				return err
			}
			left, begins = left-n, false
		}
	}
}

// Raw hands on a stream that is not multiplexed, that of a terminal.
func Raw(r io.Reader, write func([]byte) error) error {
	br := bufio.NewReaderSize(r, demuxBuffer)
	for {
		if _, err := some(br, demuxBuffer, write); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// some hands on what is there, at most n bytes, and waits for the first.
func some(br *bufio.Reader, n int, write func([]byte) error) (int, error) {
	if br.Buffered() == 0 {
		if _, err := br.Peek(1); err != nil {
			return 0, err
		}
	}
	n = min(n, br.Buffered())
	b, err := br.Peek(n)
	if err != nil {
		return 0, err
	}
	if err := write(b); err != nil {
		return 0, err
	}
	return br.Discard(n)
}

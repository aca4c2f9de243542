package session

import (
	"io"

	"github.com/harmony-fleet/fleet/command"
)

// input is what the caller sent for standard input and the process has not read
// yet. What it may hold is told to the caller as credit.
type input struct {
	seq uint64 // last number received without a gap
	// held is what was not read yet. It is copied: a message of one byte may have
	// headers of a megabyte, and would keep them.
	held     []byte
	received int64 // bytes, from the beginning
	read     int64
	told     int64 // read, when the caller was last told of the credit
	eof      bool
	gap      bool // something before what came is missing
	closed   bool // nobody reads any more
}

// take takes in a chunk, or the end. It is false for more than the credit
// allows. A number that was there already is a copy; one that is too high shows
// that what is between was lost, and is asked for again.
func (in *input) take(seq uint64, data []byte, eof bool) bool {
	switch {
	case seq <= in.seq:
		return true
	case seq > in.seq+1:
		in.gap = true
		return true
	case len(in.held)+len(data) > command.InputWindow:
		return false
	}
	in.seq, in.gap = seq, false
	if in.eof || in.closed {
		in.read += int64(len(data))
		return true
	}
	in.eof = eof
	in.held = append(in.held, data...)
	in.received += int64(len(data))
	return true
}

// readLocked copies what is there into p; more is false at the end.
func (in *input) readLocked(p []byte) (n int, more bool) {
	n = copy(p, in.held)
	if in.held = in.held[n:]; len(in.held) == 0 {
		in.held = nil
	}
	in.read += int64(n)
	return n, n > 0 || !(in.eof || in.closed)
}

// untold tells whether the caller could send much more than it knows of.
func (in *input) untold() bool { return in.gap || in.read-in.told >= command.InputWindow/2 }

func (in *input) progress() command.Progress {
	in.told = in.read
	return command.Progress{Ack: in.seq, Credit: command.InputWindow - int64(len(in.held)), Resend: in.gap}
}

// stdin is a session's standard input as a reader.
type stdin struct{ s *Session }

// Read waits for input. It ends with io.EOF where the caller ended the input,
// and with the session's cause where the session ends.
func (r stdin) Read(p []byte) (int, error) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		n, more := s.in.readLocked(p)
		switch {
		case n > 0:
			if s.in.untold() {
				s.tellLocked()
			}
			return n, nil
		case !more:
			return 0, io.EOF
		case s.ctx.Err() != nil:
			return 0, s.cause()
		case len(p) == 0:
			return 0, nil
		}
		s.changed.Wait()
	}
}

// CloseInput ends reads of standard input: nobody takes any more. What the caller
// still sends is dropped.
func (s *Session) CloseInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in.closed, s.in.held = true, nil
	s.changed.Broadcast()
}

package client

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// input sends standard input: numbered, within the device's credit, and kept
// until the device has it.
type input struct {
	s    *stream
	free chan struct{} // credit may have come

	mu      sync.Mutex // held while sending, so that numbers go out in order
	seq     uint64
	unacked []numbered
	total   int64 // bytes sent, from the beginning
	acked   int64 // bytes the device has
	limit   int64 // bytes the device takes in all
	resent  time.Time
	stopped bool
}

type numbered struct {
	seq  uint64
	data []byte
	eof  bool
}

func (in *input) init(s *stream) {
	in.s, in.free, in.limit = s, make(chan struct{}, 1), command.InputWindow
}

// run copies r to the device in the background. failed is called with the error
// of a reader that failed.
func (in *input) run(r io.Reader, failed func(error)) {
	go func() { // ends with the session, once a Read under way returns
		buf := make([]byte, command.MaxChunk)
		for {
			n, err := r.Read(buf)
			if n > 0 && !in.send(buf[:n]) {
				return
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					failed(err)
				}
				in.end()
				return
			}
		}
	}()
}

// send waits for credit and sends p, which it copies; false: the session is
// over.
func (in *input) send(p []byte) bool {
	for len(p) > 0 {
		in.mu.Lock()
		if in.stopped {
			in.mu.Unlock()
			return false
		}
		n := min(int64(len(p)), in.limit-in.total)
		if n > 0 {
			in.publish(numbered{data: append([]byte(nil), p[:n]...)})
			p = p[n:]
		}
		in.mu.Unlock()
		if n > 0 {
			continue
		}
		select {
		case <-in.free:
		case <-in.s.over:
			return false
		}
	}
	return true
}

func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.stopped {
		in.publish(numbered{eof: true})
	}
}

// publish gives m its number and sends it; in.mu is held.
func (in *input) publish(m numbered) {
	in.seq++
	m.seq = in.seq
	in.total += int64(len(m.data))
	in.unacked = append(in.unacked, m)
	in.transmit(m)
}

func (in *input) transmit(m numbered) {
	op := command.OpIn
	if m.eof {
		op = command.OpEOF
	}
	h := nats.Header{}
	command.WriteSeq(h, m.seq)
	in.s.control(op, h, m.data)
}

// progress takes in what the device says of the input.
func (in *input) progress(p command.Progress) {
	in.mu.Lock()
	n := 0
	for n < len(in.unacked) && in.unacked[n].seq <= p.Ack {
		in.acked += int64(len(in.unacked[n].data))
		n++
	}
	in.unacked = append(in.unacked[:0:0], in.unacked[n:]...)
	if p.Ack == in.seq-uint64(len(in.unacked)) && p.Credit >= 0 && p.Credit <= command.InputWindow {
		in.limit = max(in.limit, in.acked+p.Credit)
	}
	again := p.Resend && time.Since(in.resent) >= askAgain
	in.mu.Unlock()
	select {
	case in.free <- struct{}{}:
	default:
	}
	if again {
		in.resend()
	}
}

// resend sends what the device may not have.
func (in *input) resend() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.resent = time.Now()
	for _, m := range in.unacked {
		in.transmit(m)
	}
}

func (in *input) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stopped = true
}

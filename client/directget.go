package client

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/directget"
)

// Direct gets read stored messages from any replica of a stream, without a
// consumer, which people may not have.
const (
	readBatch = 1000    // messages of one read; the server refuses more than 1,024 subjects
	readBytes = 4 << 20 // bytes after which the server ends a read early
)

// getRequest is the payload of a direct get (nats-server: JSApiMsgGetRequest).
type getRequest struct {
	Seq       uint64     `json:"seq,omitempty"`
	LastFor   string     `json:"last_by_subj,omitempty"`
	NextFor   string     `json:"next_by_subj,omitempty"`
	MultiLast []string   `json:"multi_last,omitempty"`
	StartTime *time.Time `json:"start_time,omitempty"`
	Batch     int        `json:"batch,omitempty"`
	MaxBytes  int        `json:"max_bytes,omitempty"`
	UpToSeq   uint64     `json:"up_to_seq,omitempty"`
}

// stored is a message of a stream.
type stored = directget.Message

// page is the answer to one direct get.
type page struct {
	messages []stored
	more     bool   // there is more than the server sent
	upTo     uint64 // for the next multi_last read
}

// get sends one direct get and collects its answer. It ends within ctx and
// within the client's timeout. The error is a [*command.Error].
func (c *Client) get(ctx context.Context, stream string, req getRequest) (page, error) {
	room := 1
	if req.Batch > 0 {
		room = req.Batch + 2 // and the end, and a fault
	}
	events := make(chan event, room)
	call, fault := c.ask(stream, req, events)
	if fault != nil {
		return page{}, readFault(stream, fault)
	}
	defer c.mux.drop(call)
	limit := time.NewTimer(c.opts.Timeout)
	defer limit.Stop()
	var p page
	for {
		select {
		case e := <-events:
			end, err := p.add(e, req.Batch > 0)
			if err != nil {
				return page{}, readFault(stream, err)
			}
			if end {
				return p, nil
			}
		case <-ctx.Done():
			return page{}, readFault(stream, contextFault(ctx, true))
		case <-limit.C:
			return page{}, readFault(stream, timedOut(c.opts.Timeout))
		}
	}
}

// add takes the next message of the answer in and tells whether it was the last.
func (p *page) add(e event, batch bool) (end bool, err *command.Error) {
	if e.err != nil {
		return false, e.err
	}
	part, parseErr := directget.Parse(e.msg.Header, e.msg.Data, batch)
	if parseErr != nil {
		return false, natsFault(parseErr, "unexpected answer")
	}
	if part.Message.Seq != 0 {
		p.messages = append(p.messages, part.Message)
	}
	p.more, p.upTo = part.More, part.UpTo
	return part.End, nil
}

func timedOut(after time.Duration) *command.Error {
	return fault(command.OutcomeTimeout, nil, "no answer from the broker within %v", round(after))
}

// readFault says what was read when e happened.
func readFault(stream string, e *command.Error) *command.Error {
	r := *e
	r.Message = "read " + stream + ": " + e.Message
	return &r
}

// ask sends a direct get, whose answer goes to events.
func (c *Client) ask(stream string, req getRequest, events chan<- event) (*call, *command.Error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return nil, fault(command.OutcomeRejected, err, "encode the request")
	}
	call := &call{subject: access.DirectGet(stream), to: events, many: req.Batch > 0}
	if err := c.publish(call, &nats.Msg{Subject: call.subject, Data: payload}); err != nil {
		return nil, err
	}
	return call, nil
}

// scan reads every message of stream whose subject matches filter, from sequence
// from on, and hands each to f until f returns false. It reads to the end of the
// stream as it is when it gets there: where a subject is written again meanwhile,
// its message moves to the end and is seen there.
func (c *Client) scan(ctx context.Context, stream string, req getRequest, f func(stored) bool) error {
	req.Batch, req.MaxBytes = readBatch, readBytes
	if req.Seq == 0 && req.StartTime == nil {
		req.Seq = 1
	}
	for {
		p, err := c.get(ctx, stream, req)
		if err != nil {
			return err
		}
		for _, m := range p.messages {
			if !f(m) {
				return nil
			}
		}
		if !p.more || len(p.messages) == 0 {
			return nil
		}
		req.Seq, req.StartTime = p.messages[len(p.messages)-1].Seq+1, nil
	}
}

// lastOf reads the last message on each of subjects; those that have none are
// missing in what it hands to f.
func (c *Client) lastOf(ctx context.Context, stream string, subjects []string, f func(stored)) error {
	for len(subjects) > 0 {
		n := min(len(subjects), readBatch)
		req := getRequest{MultiLast: subjects[:n], Batch: n, MaxBytes: readBytes}
		for {
			p, err := c.get(ctx, stream, req)
			if err != nil {
				return err
			}
			for _, m := range p.messages {
				f(m)
			}
			if !p.more || len(p.messages) == 0 {
				break
			}
			// The server orders them by sequence.
			req.Seq, req.UpToSeq = p.messages[len(p.messages)-1].Seq+1, p.upTo
		}
		subjects = subjects[n:]
	}
	return nil
}

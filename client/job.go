package client

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// Job names one run of a program on many devices. With the same job, the same
// options and within [command.JobLifetime], [Client.ExecAll] goes on with a run
// that was interrupted: every device is asked under the id of the first time, and
// runs the program once.
type Job struct {
	// ID is a UUIDv7; see [Client.NewJob].
	ID string
	// Secret is what the ids of the job's sessions are made of. Keep it as you
	// would a password: whoever knows it could have foreign bytes delivered as a
	// device's output.
	Secret string
}

// NewJob makes a job that begins now, by broker time, without which it fails.
// The error is a [*command.Error].
func (c *Client) NewJob(ctx context.Context) (Job, error) {
	now, ok := c.now(ctx)
	if !ok {
		if ctx.Err() != nil {
			return Job{}, contextFault(ctx, false)
		}
		return Job{}, natsFault(c.clockError(), "the broker's time is not known, and a job begins at a time of the broker's")
	}
	return Job{ID: command.NewJobID(now), Secret: command.NewSessionID()}, nil
}

func (j Job) check() *command.Error {
	if err := command.CheckJobID(j.ID); err != nil {
		return asFault(err)
	}
	if err := command.CheckSessionID(j.Secret); err != nil {
		return fault(command.OutcomeRejected, nil, "the secret of job %s is not one of NewJob's", j.ID)
	}
	return nil
}

// part is what a stream knows of the job that it is a part of.
type part struct {
	job      string
	instance string        // that the device had at the last look
	timeout  time.Duration // of the first reply
	replayed bool          // the device had the request before
}

// header is that of the request, and how long its reply is waited for.
func (p part) header(requestID string, timeout time.Duration) (command.RequestHeader, time.Duration) {
	if p.timeout > 0 {
		timeout = p.timeout
	}
	return command.RequestHeader{RequestID: requestID, Job: p.job, Instance: p.instance}, timeout
}

func (p *part) noteReply(a answer) {
	values := a.header[command.HeaderReplayed]
	p.replayed = len(values) == 1 && values[0] == "true"
}

// joint is the taking up of a session whose first part another run of the job
// has acknowledged: what it begins with is what the device sends after it was
// asked to send again. Chunks before its answer may be of the middle.
type joint struct {
	asked    bool // the answer has not come
	anywhere bool // the next chunk is the first one, whatever its number
	joined   bool
}

func (j *joint) answered() {
	if j.asked {
		j.asked, j.anywhere, j.joined = false, true, true
	}
}

// takes tells whether a chunk counts; the first one sets what is next.
func (j *joint) takes(seq uint64, next *uint64) bool {
	if j.anywhere {
		j.anywhere, *next = false, seq
	}
	return !j.asked
}

// takeUp asks the device to send again what was not acknowledged, in a session
// that it opened at an earlier request.
func (s *stream) takeUp(anotherRun bool) {
	s.mu.Lock()
	s.join.asked = anotherRun && s.next == 1
	s.asked, s.gap = time.Now(), time.Time{}
	s.creditLocked(true)
}

// sessions gives the output of a job's devices to their streams: one subscription
// for all.
type sessions struct {
	subject string
	sub     *nats.Subscription
}

// openSessions subscribes to the output of every session of the caller.
func (c *Client) openSessions() (*sessions, *command.Error) {
	uid, err := c.uid()
	if err != nil {
		return nil, err
	}
	if err := c.ready(); err != nil {
		return nil, err
	}
	x := &sessions{subject: command.SessionSubject("*", uid, ">")}
	var failed error
	if x.sub, failed = c.nc.Subscribe(x.subject, c.streams.deliver); failed != nil {
		return nil, natsFault(failed, "the output of sessions cannot be subscribed to")
	}
	// Each stream bounds what its device may send; this bounds what another program
	// of the same user may have delivered here before it is dropped and sent again.
	_ = x.sub.SetPendingLimits(1<<18, 128<<20)
	return x, nil
}

func (x *sessions) close() { _ = x.sub.Unsubscribe() } // fails where the connection is closed, which is as good

// JobResults reads how the devices' parts of a job ended, as far as they have
// ended and the broker still keeps it: the last 32 results of each device and
// slot, for 7 days. Of each device there is one; it counts only what was asked by
// the caller. It needs a role that may exec.
//
// A result is what a device says of itself: a hostile device can lie about its own
// part, and about no other. One that cannot be read is yielded with an error, and
// the reading goes on; any other error is a [*command.Error], comes with the zero
// result, and ends the reading.
func (c *Client) JobResults(ctx context.Context, job string) iter.Seq2[command.JobResult, error] {
	return func(yield func(command.JobResult, error) bool) {
		if err := command.CheckJobID(job); err != nil {
			yield(command.JobResult{}, err)
			return
		}
		uid, fault := c.uid()
		if fault != nil {
			yield(command.JobResult{}, fault)
			return
		}
		since := command.JobTime(job).Add(-command.MaxJobAhead)
		req := getRequest{NextFor: command.JobSubject("*", command.JobSlot(job)), StartTime: &since}
		found := map[string]command.JobResult{}
		var order []string
		more := true
		err := c.scan(ctx, access.StreamJobs, req, func(m stored) bool {
			r, other, err := command.DecodeJobResult(m.Subject, job, m.Data)
			switch {
			case err != nil:
				more = yield(command.JobResult{}, fmt.Errorf("record %d of %s: %w", m.Seq, access.StreamJobs, err))
			case other || r.UID != uid:
			default:
				before, again := found[r.DeviceID]
				if !again {
					order = append(order, r.DeviceID)
				}
				// A refusal of one who asks again does not undo that the program ran.
				if !again || before.ExitCode == nil || r.ExitCode != nil {
					found[r.DeviceID] = r
				}
			}
			return more
		})
		for _, device := range order {
			if !more {
				return
			}
			more = yield(found[device], nil)
		}
		if err != nil && more {
			yield(command.JobResult{}, err)
		}
	}
}

// UID is the caller's uid, by which devices tell callers apart: a job is the
// caller's who began it. It is taken from the connection's inbox prefix, and the
// broker lets nobody use another's.
func (c *Client) UID() (string, error) {
	uid, err := c.uid()
	if err != nil {
		return "", err
	}
	return uid, nil
}

package client

import (
	"context"
	"io"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// LogsOptions say which output of a container is wanted, and where it goes.
type LogsOptions struct {
	// Container is a service's name, or deployment/service where the name alone is
	// not unique on the device.
	Container string
	// Stdout and Stderr get the output; one that is nil is not asked for. At least
	// one is needed. A writer that waits makes the device wait.
	Stdout, Stderr io.Writer
	// Follow waits for more until ctx ends, or the container does.
	Follow bool
	// Reopen goes on with the new container where the one that is followed is
	// replaced; Notice is told.
	Reopen bool
	// Tail is how many lines from the end are wanted; nil: all.
	Tail *int
	// Since and Until bound the time of the output; zero: they do not.
	Since, Until time.Time
	// Timestamps puts the time, in RFC 3339 with nanoseconds, before each line.
	Timestamps bool
	// Notice is told, in words, of what output does not show: that the container was
	// replaced. It must not wait. nil: nobody is told.
	Notice func(string)
	// Window is how much output may be under way, in bytes, and so what a slow writer
	// makes both ends hold. Default command.DefaultLogsWindow; the throughput over a
	// network is at most one window per round trip.
	Window int64
}

// Logs copies the output of a container until it ends, or ctx does, which is
// then the error. The error, if any, is a [*command.Error]. Nothing is left out:
// output that was lost and cannot be had again is an error too.
//
// A connection that breaks meanwhile, of either end, does not end the copy,
// unless it takes longer than command.SessionLease to come back.
func (c *Client) Logs(ctx context.Context, device string, o LogsOptions) error {
	request := command.LogsRequest{
		Container: o.Container, Follow: o.Follow, Reopen: o.Reopen, Tail: o.Tail, Timestamps: o.Timestamps,
		Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	}
	if !o.Since.IsZero() {
		request.Since = o.Since.UTC().Format(time.RFC3339Nano)
	}
	if !o.Until.IsZero() {
		request.Until = o.Until.UTC().Format(time.RFC3339Nano)
	}
	if !request.Stdout && !request.Stderr {
		return of(fault(command.OutcomeRejected, nil, "neither Stdout nor Stderr is given: there is nowhere to write to"), command.VerbLogs, device, "")
	}
	s, err := c.openStream(command.VerbLogs, device, o.Window, command.DefaultLogsWindow, o.Notice)
	if err != nil {
		return of(err, command.VerbLogs, device, "")
	}
	request.Session = s.session()
	if err := s.start(ctx, request); err != nil {
		return err
	}
	defer s.close()
	_, err = s.copy(ctx, to(o.Stdout, o.Stderr))
	if err != nil {
		c.note(ctx, err)
		return err
	}
	return nil
}

// to writes stdout, and the output of a terminal, to one writer and stderr to
// the other; nil discards.
func to(stdout, stderr io.Writer) func(command.Stream, []byte) error {
	return func(stream command.Stream, data []byte) error {
		w := stdout
		if stream == command.StreamStderr {
			w = stderr
		}
		if w == nil {
			return nil
		}
		_, err := w.Write(data)
		return err
	}
}

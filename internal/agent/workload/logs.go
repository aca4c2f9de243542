package workload

import (
	"context"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// Logs opens a session with the output of a container.
func (s *Server) Logs(ctx context.Context, c Call) (any, error) {
	if err := s.o.Policy.caller(c.Verb, c.Caller.User); err != nil {
		return nil, err
	}
	request, err := command.DecodeRequest[command.LogsRequest](c.Verb, c.Payload)
	if err != nil {
		return nil, err
	}
	o := engine.LogsOptions{
		Stdout: request.Stdout, Stderr: request.Stderr, Follow: request.Follow, Tail: request.Tail, Timestamps: request.Timestamps,
	}
	if !o.Stdout && !o.Stderr {
		return nil, command.NewError(command.KindBadRequest, "logs: neither stdout nor stderr is asked for")
	}
	if o.Tail != nil && *o.Tail < 0 {
		return nil, command.NewError(command.KindBadRequest, "logs: tail is %d; want a number of lines", *o.Tail)
	}
	if o.Since, err = readTime("since", request.Since); err != nil {
		return nil, err
	}
	if o.Until, err = readTime("until", request.Until); err != nil {
		return nil, err
	}
	w, err := s.locate(ctx, c.Verb, request.Container)
	if err != nil {
		return nil, err
	}
	sess, err := s.open(c, request.Session, session.Open{})
	if err != nil {
		return nil, err
	}
	f := &follower{server: s, session: sess, name: nameOf(w), options: o, reopen: request.Reopen && request.Follow}
	sess.Serve(func(ctx context.Context) session.Result { return f.run(ctx, w) }, s.ended(c, sess, c.Now()))
	return command.SessionReply{Session: sess.ID()}, nil
}

func readTime(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, command.NewError(command.KindBadRequest, "logs: %s is %.80q, want RFC 3339 such as 2026-01-02T15:04:05Z", field, s)
	}
	return t, nil
}

// follower copies the output of a container, and of those that replace it.
type follower struct {
	server  *Server
	session *session.Session
	name    string // deployment/service
	options engine.LogsOptions
	reopen  bool
}

func (f *follower) run(ctx context.Context, w engine.Container) session.Result {
	o := f.options
	for {
		err := f.copy(ctx, w.ID, o)
		switch {
		case ctx.Err() != nil:
			return session.Result{}
		case err != nil:
			f.server.log.Error("the output of a container cannot be read", "container", f.name, "error", err)
			return session.Result{Err: command.NewError(command.KindRuntimeUnavailable, "the output of the container cannot be read any further; the agent's log says why")}
		case !f.options.Follow:
			return session.Result{}
		}
		next, ok := f.successor(ctx, w)
		if !ok {
			return session.Result{}
		}
		w = next
		// All of the new container's.
		o.Tail, o.Since = nil, time.Time{}
	}
}

func (f *follower) copy(ctx context.Context, id string, o engine.LogsOptions) error {
	r, err := f.server.o.Engine.Logs(ctx, id, o)
	if err != nil {
		return err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() }) // a read under way
	defer stop()
	return engine.Demux(r, func(out engine.Output, p []byte) error {
		_, err := f.session.Write(stream(out), p)
		return err
	})
}

func stream(out engine.Output) command.Stream {
	if out == engine.Stderr {
		return command.StreamStderr
	}
	return command.StreamStdout
}

// How long a replacement may take before the reader is told that there is none,
// and how often it is looked for.
const (
	lookFor   = 2 * time.Second
	lookEvery = 200 * time.Millisecond
)

// successor waits for the container that replaces old. Without reopen it only
// tells the reader that there is one.
func (f *follower) successor(ctx context.Context, old engine.Container) (engine.Container, bool) {
	began, told := time.Now(), false
	for {
		all, err := f.server.o.Engine.Containers(ctx, f.server.o.DeviceID)
		if err == nil {
			for _, w := range engine.Find(all, f.name) {
				if w.ID == old.ID {
					continue
				}
				if f.reopen {
					f.session.Notice("the container " + f.name + " was replaced; going on with the new one")
					return w, true
				}
				f.session.Notice("the container " + f.name + " was replaced; the output of the new one is not followed")
				return w, false
			}
		}
		if !f.reopen {
			return engine.Container{}, false
		}
		if !told && time.Since(began) > lookFor {
			told = true
			f.session.Notice("the container " + f.name + " ended; waiting for the one that replaces it")
		}
		select {
		case <-ctx.Done():
			return engine.Container{}, false
		case <-time.After(lookEvery):
		}
	}
}

package workload

import (
	"context"
	"errors"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/session"
	"github.com/harmony-fleet/fleet/internal/engine"
	"github.com/harmony-fleet/fleet/internal/engine/logfile"
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
	// read is where the output of the container was read up to; zero: nothing was.
	read position
}

func (f *follower) run(ctx context.Context, c engine.Container) session.Result {
	o := f.options
	pause := minPause
	for {
		began := time.Now()
		err := f.copy(ctx, c.ID, o)
		switch {
		case ctx.Err() != nil:
			return session.Result{}
		case errors.Is(err, logfile.ErrLost):
			return session.Result{Err: command.NewError(command.KindInternal, "%v", logfile.ErrLost)}
		case errors.Is(err, engine.ErrNotFound):
			// It went with its output; there may be a next one.
		case err != nil:
			f.server.log.Error("the output of a container cannot be read", "container", f.name, "error", err)
			return session.Result{Err: command.NewError(command.KindRuntimeUnavailable, "the output of the container cannot be read any further; the agent's log says why")}
		}
		if !o.Follow || (!o.Until.IsZero() && time.Now().After(o.Until)) {
			return session.Result{}
		}
		next, ok := f.successor(ctx, c)
		if !ok {
			return session.Result{}
		}
		if time.Since(began) > settled {
			pause = minPause
		}
		select { // a container that ends as soon as it is started is no reason to hurry
		case <-ctx.Done():
			return session.Result{}
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		}
		switch {
		case next.ID != c.ID:
			o.Since, f.read = time.Time{}, position{} // all of the new container's
		case !f.read.time.IsZero():
			o.Since = f.read.time
		case o.Tail != nil:
			o.Since = began // and nothing had come since then
		}
		o.Tail = nil
		c = next
	}
}

// How long the follower waits before it looks at what comes next: longer each
// time, until one has gone on for a while.
const (
	minPause = 10 * time.Millisecond
	maxPause = 2 * time.Second
	settled  = 2 * time.Second
)

// copy hands on the output of one container, from where an earlier call of the
// same one ended, until there is no more.
func (f *follower) copy(ctx context.Context, id string, o engine.LogsOptions) error {
	facts, err := f.server.o.Engine.Facts(ctx, id)
	if err != nil {
		return err
	}
	if facts.LogPath != "" {
		// The engine's file, where the agent can read it: see package logfile.
		r, err := logfile.Open(facts.LogPath, logfile.Options{
			Stdout: o.Stdout, Stderr: o.Stderr, Tail: o.Tail, Since: o.Since, After: f.read.time, Until: o.Until, Timestamps: o.Timestamps, Follow: o.Follow,
		})
		if err == nil {
			defer r.Close()
			err := r.Copy(ctx, f.running(id, facts), func(s logfile.Stream, p []byte) error { return f.write(engine.Output(s), p) })
			if at := r.Last(); !at.IsZero() {
				f.read = position{time: at}
			}
			return err
		}
		f.server.log.Debug("the engine's log file is not used", "container", f.name, "error", err)
	}
	p := &pieces{show: o.Timestamps, from: f.read, write: f.write}
	o.Timestamps = true
	r, err := f.server.o.Engine.Logs(ctx, id, o)
	if err != nil {
		return err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() }) // ends a read under way
	defer stop()
	err = engine.DemuxFrames(r, p.take)
	if !p.at.time.IsZero() {
		f.read = p.at
	}
	return err
}

func (f *follower) write(out engine.Output, p []byte) error {
	_, err := f.session.Write(stream(out), p)
	return err
}

// running tells whether more output may come. Most of the time a look at the
// container's first process says so, which costs the engine nothing.
func (f *follower) running(id string, facts engine.Facts) func(context.Context) (bool, error) {
	mount, seen := foreignMount(facts.PID)
	return func(ctx context.Context) (bool, error) {
		if now, ok := foreignMount(facts.PID); seen && ok && now == mount {
			return true, nil
		}
		latest, err := f.server.o.Engine.Facts(ctx, id)
		switch {
		case errors.Is(err, engine.ErrNotFound):
			return false, nil
		case err != nil:
			return true, nil // the engine is away for a while; the file goes on
		case !latest.Running:
			return false, nil
		}
		facts = latest
		mount, seen = foreignMount(facts.PID)
		return true, nil
	}
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

// successor waits for the container that replaces old, or for old to be started
// again. Without reopen it only tells the reader what there is.
func (f *follower) successor(ctx context.Context, old engine.Container) (engine.Container, bool) {
	began, told := time.Now(), false
	for {
		all, err := f.server.o.Engine.Containers(ctx, f.server.o.DeviceID)
		if err == nil {
			for _, c := range engine.Find(all, f.name) {
				again := c.ID == old.ID
				switch {
				case again && (!f.reopen || c.State != engine.StateRunning):
				case again:
					f.session.Notice("the container " + f.name + " was started again")
					return c, true
				case f.reopen:
					f.session.Notice("the container " + f.name + " was replaced; going on with the new one")
					return c, true
				default:
					f.session.Notice("the container " + f.name + " was replaced; the output of the new one is not followed")
					return engine.Container{}, false
				}
			}
		}
		if !f.reopen {
			return engine.Container{}, false
		}
		if !told && time.Since(began) > lookFor {
			told = true
			f.session.Notice("the container " + f.name + " ended; waiting for it to be started again or replaced")
		}
		select {
		case <-ctx.Done():
			return engine.Container{}, false
		case <-time.After(lookEvery):
		}
	}
}

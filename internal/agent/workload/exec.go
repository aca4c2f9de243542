package workload

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/session"
)

// program is what exec or shell asks to run.
type program struct {
	container  string
	host       bool
	argv       []string
	env        map[string]string
	workdir    string
	user       string
	stdin, tty bool
	rows, cols uint16
	wholeGroup bool // what it leaves behind ends with it
}

// process is a program that runs.
type process interface {
	// Output hands on what the program writes, until it has ended.
	Output(write func(command.Stream, []byte) error) error
	// Write is to standard input, which CloseInput ends.
	io.Writer
	CloseInput() error
	Resize(rows, cols uint16) error
	Signal(name string) error
	// Attend may wait for the engine; it is called once, beside Output.
	Attend()
	// Kill ends the program and whatever it started, at once.
	Kill()
	// Wait gives the exit code once the program has ended. An error says that it
	// cannot be known.
	Wait(ctx context.Context) (exitCode int, err error)
	Close()
}

// Exec runs a program: with a session it is accepted once it runs, without one
// it is answered when it has ended.
func (s *Server) Exec(ctx context.Context, c Call) (any, error) {
	if err := s.o.Policy.caller(c.Verb, c.Caller.User); err != nil {
		return nil, err
	}
	request, err := command.DecodeRequest[command.ExecRequest](c.Verb, c.Payload)
	if err != nil {
		return nil, err
	}
	p := program{
		container: request.Container, host: request.Host, argv: request.Argv, env: request.Env, workdir: request.Workdir, user: request.User,
		stdin: request.Stdin, tty: request.TTY, rows: 24, cols: 80,
	}
	switch {
	case len(p.argv) == 0 || p.argv[0] == "":
		return nil, command.NewError(command.KindBadRequest, "exec: argv is empty; give the program and its arguments")
	case request.TimeoutMS < 0:
		return nil, command.NewError(command.KindBadRequest, "exec: timeout_ms is %d; want 0 or more", request.TimeoutMS)
	case request.Session == nil && (p.stdin || p.tty):
		return nil, command.NewError(command.KindBadRequest, "exec: standard input and a terminal need a session")
	}
	timeout := time.Duration(request.TimeoutMS) * time.Millisecond
	if request.Session == nil {
		return s.answer(ctx, c, p, timeout)
	}
	return s.attach(ctx, c, p, request.Session, session.Open{Timeout: timeout, MaxDuration: s.o.Policy.MaxDuration})
}

// Shell opens a terminal.
func (s *Server) Shell(ctx context.Context, c Call) (any, error) {
	if err := s.o.Policy.caller(c.Verb, c.Caller.User); err != nil {
		return nil, err
	}
	request, err := command.DecodeRequest[command.ShellRequest](c.Verb, c.Payload)
	if err != nil {
		return nil, err
	}
	p := program{
		container: request.Container, host: request.Host, argv: request.Argv, env: maps.Clone(request.Env), workdir: request.Workdir, user: request.User,
		stdin: true, tty: true, rows: request.Rows, cols: request.Cols, wholeGroup: true,
	}
	if p.rows == 0 || p.cols == 0 {
		p.rows, p.cols = 24, 80
	}
	if p.env == nil {
		p.env = map[string]string{}
	}
	if _, set := p.env["TERM"]; !set {
		p.env["TERM"] = request.Term
		if request.Term == "" {
			p.env["TERM"] = "xterm"
		}
	}
	if len(p.argv) == 0 && !p.host {
		// The best shell that the container has; it has no shell's login files to say
		// which its user wants.
		p.argv = []string{"/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"}
	}
	return s.attach(ctx, c, p, request.Session, session.Open{MaxDuration: s.o.Policy.MaxDuration, IdleTimeout: s.o.Policy.IdleTimeout})
}

// shorter is the shorter of two bounds, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// check refuses what cannot be given to a process.
func (p program) check(verb command.Verb) error {
	bad := func(what string) error {
		return command.NewError(command.KindBadRequest, "%s: %s", verb, what)
	}
	for _, a := range append([]string{p.workdir, p.user}, p.argv...) {
		if strings.ContainsRune(a, 0) {
			return bad("an argument holds a zero byte")
		}
	}
	for name, value := range p.env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return bad("a variable of env has no usable name, or holds a zero byte")
		}
	}
	if p.host && p.container != "" {
		return bad("either a container or the host, not both")
	}
	if p.host && p.user != "" {
		return bad("the user on the host is the policy's; leave user empty")
	}
	return nil
}

// environ is what is added to the environment. The mark is the agent's own,
// whatever the caller says.
func (p program) environ(mark string) []string {
	var env []string
	for _, name := range slices.Sorted(maps.Keys(p.env)) {
		if name != markName {
			env = append(env, name+"="+p.env[name])
		}
	}
	return append(env, markName+"="+mark)
}

// prepare checks everything that can be checked before the program starts, and
// gives what starts it.
func (s *Server) prepare(ctx context.Context, c Call, p program) (start func(context.Context) (process, error), err error) {
	if err := p.check(c.Verb); err != nil {
		return nil, err
	}
	if p.host {
		if err := s.o.Policy.host(c.Verb); err != nil {
			return nil, err
		}
		return s.prepareHost(c, p)
	}
	w, err := s.locate(ctx, c.Verb, p.container)
	if err != nil {
		return nil, err
	}
	return s.prepareContainer(ctx, c, p, w)
}

// attach starts a program and connects it to a session.
func (s *Server) attach(ctx context.Context, c Call, p program, named *command.Session, bounds session.Open) (any, error) {
	start, err := s.prepare(ctx, c, p)
	if err != nil {
		return nil, err
	}
	sess, err := s.open(c, named, bounds)
	if err != nil {
		return nil, err
	}
	if err := c.StillValid(); err != nil {
		sess.Abort()
		return nil, err
	}
	proc, err := start(ctx)
	if err != nil {
		sess.Abort()
		return nil, err
	}
	sess.Serve(func(ctx context.Context) session.Result {
		e := ends{write: sess.Write, session: sess}
		if p.tty {
			e.write = func(_ command.Stream, b []byte) (int, error) { return sess.Write(command.StreamPTY, b) }
		}
		if p.stdin {
			e.stdin = sess.Stdin()
		}
		return s.conduct(ctx, c, proc, e, p.wholeGroup)
	}, s.ended(c, sess, c.Now()))
	return command.SessionReply{Session: sess.ID()}, nil
}

// ends are what a process is connected to.
type ends struct {
	stdin   io.Reader // nil: none
	write   func(command.Stream, []byte) (int, error)
	session *session.Session // brings resizes and signals; nil: there is none
}

// conduct connects a process and waits for its end, which it brings about when
// ctx ends.
func (s *Server) conduct(ctx context.Context, c Call, p process, e ends, wholeGroup bool) session.Result {
	defer p.Close()
	stop := context.AfterFunc(ctx, func() {
		p.Kill()
		time.AfterFunc(killGrace, p.Close) // so that Output ends in any case
	})
	defer stop()
	var helpers sync.WaitGroup
	over := make(chan struct{})
	helpers.Go(p.Attend)
	helpers.Go(func() {
		if e.stdin == nil {
			return
		}
		if _, err := io.Copy(p, e.stdin); err == nil {
			_ = p.CloseInput() // fails where the program has ended, which is as good
			return
		}
		_, _ = io.Copy(io.Discard, e.stdin) // the program takes no more; the caller may go on
	})
	helpers.Go(func() {
		if e.session != nil {
			s.control(c, p, e.session, over)
		}
	})
	outErr := p.Output(func(stream command.Stream, b []byte) error {
		_, err := e.write(stream, b)
		return err
	})
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.patience(ctx))
	code, err := p.Wait(wait)
	cancel()
	if wholeGroup || ctx.Err() != nil {
		p.Kill()
	}
	close(over)
	if e.session != nil {
		e.session.CloseInput() // ends a Read under way
	}
	p.Close()
	helpers.Wait()
	switch {
	case err == nil:
		return session.Result{ExitCode: &code}
	case kindOf(err) != "":
		var e *command.Error
		errors.As(err, &e)
		return session.Result{Err: e}
	case ctx.Err() != nil:
		return session.Result{}
	}
	s.log.Error("the end of a program is not known", "verb", c.Verb, "request_id", c.Header.RequestID, "error", err, "output_error", outErr)
	return session.Result{Err: command.NewError(command.KindStartedNoResult, "the program started, and its end cannot be learned")}
}

// patience is how long a program may go on once its output has ended: as long as
// its session, and a moment once it has been killed.
func (s *Server) patience(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return killGrace
	}
	return access.ReplyLifetime
}

const killGrace = 5 * time.Second

// kindOf is the kind of a command's error; empty for any other.
func kindOf(err error) command.Kind {
	var e *command.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

// settleTime is when a resize is made once more: Podman overlooks one of two that
// follow each other within milliseconds, and the last one counts.
const settleTime = 150 * time.Millisecond

// control passes resizes and signals on until the program is over.
func (s *Server) control(c Call, p process, sess *session.Session, over <-chan struct{}) {
	note := func(err error) {
		if err != nil {
			s.log.Debug("a program could not be controlled", "verb", c.Verb, "request_id", c.Header.RequestID, "error", err)
		}
	}
	var size command.Resize
	settle := time.NewTimer(time.Hour)
	defer settle.Stop()
	for {
		for control, ok := sess.NextControl(); ok; control, ok = sess.NextControl() {
			if control.Resize == nil {
				note(p.Signal(control.Signal.Name))
				continue
			}
			size = *control.Resize
			note(p.Resize(size.Rows, size.Cols))
			settle.Reset(settleTime)
		}
		select {
		case <-over:
			return
		case <-sess.Controls():
		case <-settle.C:
			if size != (command.Resize{}) {
				note(p.Resize(size.Rows, size.Cols))
			}
		}
	}
}

// answer runs a program without a session.
func (s *Server) answer(ctx context.Context, c Call, p program, timeout time.Duration) (any, error) {
	start, err := s.prepare(ctx, c, p)
	if err != nil {
		return nil, err
	}
	if err := c.StillValid(); err != nil {
		return nil, err
	}
	limit := shorter(shorter(timeout, s.o.Policy.MaxDuration), min(c.Remaining(), access.ReplyLifetime-killGrace))
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	proc, err := start(ctx)
	if err != nil {
		return nil, err
	}
	reply := command.ExecReply{Stdout: []byte{}, Stderr: []byte{}}
	r := s.conduct(ctx, c, proc, ends{write: func(stream command.Stream, b []byte) (int, error) {
		n := min(len(b), command.MaxExecOutput-len(reply.Stdout)-len(reply.Stderr))
		if n < len(b) {
			reply.Truncated = true
		}
		if stream == command.StreamStderr {
			reply.Stderr = append(reply.Stderr, b[:n]...)
		} else {
			reply.Stdout = append(reply.Stdout, b[:n]...)
		}
		return len(b), nil
	}}, false)
	switch {
	case r.Err != nil:
		return nil, r.Err
	case r.ExitCode == nil:
		return nil, command.NewError(command.KindStartedNoResult, "the program was killed after %v, and its exit code cannot be learned", limit.Round(time.Millisecond))
	}
	reply.ExitCode = *r.ExitCode
	return reply, nil
}

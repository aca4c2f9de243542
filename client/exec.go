package client

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// ExecOptions say what to run and how it is connected.
type ExecOptions struct {
	// Container is a service's name, or deployment/service; empty: the device's only
	// container.
	Container string
	// Host runs the program on the device itself, where the agent's policy allows,
	// as the user that the policy names. Container is empty then.
	Host bool
	// Argv is the program and its arguments; no shell looks at them.
	Argv []string
	// Env is added to the environment of the container or user.
	Env map[string]string
	// Workdir is where the program starts; empty: the container's.
	Workdir string
	// User is whom it runs as in the container; empty: the container's.
	User string

	// Stdin is copied to the program until it ends; nil: the program reads an end of
	// file at once. A Read that waits is not waited for: it, and the goroutine that
	// calls it, may outlive the call.
	Stdin io.Reader
	// Stdout and Stderr get the output; nil discards. A writer that waits makes the
	// program wait.
	Stdout, Stderr io.Writer
	// TTY connects the program to a pseudo-terminal of that size, whose output is
	// all Stdout; nil: none.
	TTY *command.Resize
	// Resize and Signals are passed on while the program runs; a signal is a name
	// without "SIG", such as TERM. nil: there are none.
	Resize  <-chan command.Resize
	Signals <-chan string
	// Timeout kills the program when it has run so long; 0: the agent's policy alone
	// bounds it.
	Timeout time.Duration
	// Window is how much output may be under way, in bytes. Default
	// command.DefaultExecWindow.
	Window int64

	// Job and Output are for [Client.ExecAll] alone. Job is what to begin or to go on
	// with; zero: a new one. Output gives what gets a device's output in place of
	// Stdout and Stderr, and is called once for each device that is asked; nil
	// discards. Those of different devices are written to at the same time.
	Job    Job
	Output func(device string) (stdout, stderr io.Writer)
}

func (o ExecOptions) request() command.ExecRequest {
	return command.ExecRequest{
		Container: o.Container, Host: o.Host, Argv: o.Argv, Env: o.Env, Workdir: o.Workdir, User: o.User,
		Stdin: o.Stdin != nil, TTY: o.TTY != nil, TimeoutMS: o.Timeout.Milliseconds(),
	}
}

// ExecResult is how a program ended.
type ExecResult struct {
	RequestID string // for [Client.Result]; empty where the device was not asked
	ExitCode  int    // meaningless where there is an error
	Bytes     command.SessionBytes
}

// Exec runs a program, copies what it reads and writes, and gives its exit code,
// which is no error whatever it is. When ctx ends the program is killed, and the
// error is the context's. The error, if any, is a [*command.Error]; where the
// session was lost and the program may still run, it is [ErrStartedNoResult],
// and [Client.Result] tells later.
//
// The program runs once, whatever is lost or repeated on the way.
func (c *Client) Exec(ctx context.Context, device string, o ExecOptions) (ExecResult, error) {
	s, err := c.openStream(command.VerbExec, device, o.Window, command.DefaultExecWindow, nil)
	if err != nil {
		return ExecResult{}, of(err, command.VerbExec, device, "")
	}
	request := o.request()
	request.Session = s.session()
	return s.process(ctx, request, wiring{stdin: o.Stdin, stdout: o.Stdout, stderr: o.Stderr, size: o.TTY, resize: o.Resize, signals: o.Signals})
}

// Output runs a program and gives what it wrote, at most command.MaxExecOutput
// bytes of it, in one reply. It is killed at the timeout of the client. Stdin,
// Stdout, Stderr, TTY, Resize, Signals and Window of the options are not used.
func (c *Client) Output(ctx context.Context, device string, o ExecOptions) (command.ExecReply, error) {
	instance, err := c.instance(ctx, device)
	if err != nil {
		return command.ExecReply{}, of(err, command.VerbExec, device, "")
	}
	o.Stdin, o.TTY = nil, nil
	payload, failed := json.Marshal(o.request())
	if failed != nil {
		return command.ExecReply{}, of(fault(command.OutcomeRejected, failed, "the request cannot be encoded"), command.VerbExec, device, "")
	}
	a, err := c.do(ctx, command.VerbExec, device, payload, command.RequestHeader{Instance: instance}, c.opts.Timeout)
	if err != nil {
		return command.ExecReply{}, err
	}
	reply, err := decode[command.ExecReply](a, command.VerbExec, device)
	if err != nil {
		return reply, err
	}
	return reply, nil
}

// ShellOptions say which shell to open and which terminal it is connected to.
type ShellOptions struct {
	Container string            // a service's name, or deployment/service; empty: the only one
	Host      bool              // on the device itself, where the agent's policy allows
	Argv      []string          // empty: the container's shell
	Env       map[string]string // added to the environment
	Workdir   string            // empty: the container's
	User      string            // in the container; empty: the container's
	Term      string            // TERM of the shell; empty: xterm
	Size      command.Resize    // of the terminal; zero: 24 rows and 80 columns

	Stdin  io.Reader             // what is typed; see [ExecOptions.Stdin]
	Stdout io.Writer             // what the terminal shows
	Resize <-chan command.Resize // passed on; nil: none
	Window int64                 // bytes; default command.DefaultExecWindow
}

// Shell opens a terminal on a device and stays until the shell ends, whose exit
// code it gives. When ctx ends everything that was started in the terminal is
// killed. Errors are those of [Client.Exec].
func (c *Client) Shell(ctx context.Context, device string, o ShellOptions) (ExecResult, error) {
	s, err := c.openStream(command.VerbShell, device, o.Window, command.DefaultExecWindow, nil)
	if err != nil {
		return ExecResult{}, of(err, command.VerbShell, device, "")
	}
	if o.Size.Rows == 0 || o.Size.Cols == 0 {
		o.Size = command.Resize{Rows: 24, Cols: 80}
	}
	return s.process(ctx, command.ShellRequest{
		Session: s.session(), Container: o.Container, Host: o.Host, Argv: o.Argv, Env: o.Env, Workdir: o.Workdir, User: o.User,
		Rows: o.Size.Rows, Cols: o.Size.Cols, Term: o.Term,
	}, wiring{stdin: o.Stdin, stdout: o.Stdout, resize: o.Resize})
}

// Result asks how an earlier exec or shell of the same caller ended. It is
// [ErrStartedNoResult] while that is not known, and of kind not_found for a
// request that the device does not know.
func (c *Client) Result(ctx context.Context, device, requestID string) (command.ResultReply, error) {
	if err := command.CheckRequestID(requestID); err != nil {
		return command.ResultReply{}, of(asFault(err), command.VerbResult, device, "")
	}
	payload, err := json.Marshal(command.ResultRequest{RequestID: requestID})
	if err != nil {
		return command.ResultReply{}, of(asFault(err), command.VerbResult, device, "")
	}
	a, failed := c.do(ctx, command.VerbResult, device, payload, command.RequestHeader{}, c.opts.Timeout)
	if failed != nil {
		return command.ResultReply{}, failed
	}
	reply, failed := decode[command.ResultReply](a, command.VerbResult, device)
	if failed != nil {
		return reply, failed
	}
	return reply, nil
}

// wiring is what a process is connected to on this side.
type wiring struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	size           *command.Resize
	resize         <-chan command.Resize
	signals        <-chan string
}

// process opens the session of a process and stays until it ends.
func (s *stream) process(ctx context.Context, request any, w wiring) (ExecResult, error) {
	if err := s.start(ctx, request); err != nil {
		return ExecResult{RequestID: err.RequestID}, err
	}
	defer s.close()
	if w.size != nil {
		s.order(command.OpResize, *w.size)
	}
	if w.stdin != nil {
		s.input.run(w.stdin, func(err error) {
			s.control(command.OpCancel, nil, nil)
			s.fail(fault(command.OutcomeFailed, err, "standard input could not be read"))
		})
	}
	s.tending.Go(func() { s.forward(w) })
	end, err := s.copy(ctx, to(w.stdout, w.stderr))
	r := ExecResult{RequestID: s.reqID, Bytes: end.Bytes}
	if end.ExitCode != nil {
		r.ExitCode = *end.ExitCode
	}
	if err == nil && end.ExitCode == nil {
		err = of(fault(command.OutcomeFailed, nil, "the device does not know the exit code"), s.verb, s.device, s.reqID)
	}
	if err != nil {
		err = unknownEnd(err, ctx)
		s.c.note(ctx, err)
		return r, err
	}
	return r, nil
}

// forward passes resizes and signals on until the stream is closed.
func (s *stream) forward(w wiring) {
	for {
		select {
		case <-s.over:
			return
		case size, ok := <-w.resize:
			if !ok {
				w.resize = nil
				continue
			}
			s.order(command.OpResize, size)
		case name, ok := <-w.signals:
			if !ok {
				w.signals = nil
				continue
			}
			s.order(command.OpSignal, command.Signal{Name: name})
		}
	}
}

// instance is the agent's, from its last status: a command that changes
// something names it, so that of two agents with one id only one acts.
func (c *Client) instance(ctx context.Context, device string) (string, *command.Error) {
	if err := checkDevice(device); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	page, err := c.get(ctx, access.StreamStatus, getRequest{LastFor: command.StatusSubject(device)})
	if err != nil {
		return "", asFault(err)
	}
	if len(page.messages) == 0 {
		return "", offlineFault(lastSeen{read: true})
	}
	return instanceOf(device, page.messages[0])
}

// instanceOf reads the instance out of a device's status.
func instanceOf(device string, m stored) (string, *command.Error) {
	status, err := command.DecodeDocument[command.Status](m.Data)
	if err != nil || status.DeviceID != device || status.Instance == "" {
		return "", fault(command.OutcomeFailed, err, "the device's last status cannot be read; without it a command that changes something is not sent")
	}
	return status.Instance, nil
}

package engine

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// LogsOptions say which output of a container is wanted.
type LogsOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Tail           *int      // lines from the end; nil: all
	Since, Until   time.Time // zero: no bound
	Timestamps     bool
}

// Logs reads the output of a container as the engine kept it; see [Demux]. A
// follow ends with the container, with ctx, or with Close.
func (e *Engine) Logs(ctx context.Context, id string, o LogsOptions) (io.ReadCloser, error) {
	opts := container.LogsOptions{
		ShowStdout: o.Stdout, ShowStderr: o.Stderr, Follow: o.Follow, Timestamps: o.Timestamps, Tail: "all",
		Since: unixTime(o.Since), Until: unixTime(o.Until),
	}
	if o.Tail != nil {
		opts.Tail = strconv.Itoa(*o.Tail)
	}
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	r, err := api.ContainerLogs(ctx, id, opts)
	if err != nil {
		return nil, e.fault(err, "read the logs of container "+short(id))
	}
	return r, nil
}

func unixTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond())
}

// Facts are what running something in a container, or reading its log file,
// needs to know of it.
type Facts struct {
	Running   bool
	PID       int    // of its first process, on the host; 0: none
	LogDriver string // "json-file" of Docker; Podman says "k8s-file" or "json-file" for the same format
	LogPath   string // on the engine's machine; empty: not known
	Started   time.Time
}

// questionTimeout bounds what the engine answers at once where it is well: one
// that hangs must not keep a caller's command for ever.
const questionTimeout = 30 * time.Second

// Facts inspects a container.
func (e *Engine) Facts(ctx context.Context, id string) (Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return Facts{}, err
	}
	c, err := api.ContainerInspect(ctx, id)
	if err != nil {
		return Facts{}, e.fault(err, "inspect container "+short(id))
	}
	f := Facts{LogPath: c.LogPath}
	if c.State != nil {
		f.Running, f.PID = c.State.Running, c.State.Pid
		f.Started, _ = time.Parse(time.RFC3339Nano, c.State.StartedAt)
	}
	if c.HostConfig != nil {
		f.LogDriver = c.HostConfig.LogConfig.Type
	}
	return f, nil
}

// ExecSpec is a program to run in a container.
type ExecSpec struct {
	Argv    []string
	Env     []string // NAME=value
	Workdir string
	User    string
	Stdin   bool
	TTY     bool
}

// Exec is a program in a container.
type Exec struct {
	ID     string
	TTY    bool
	engine *Engine
	api    *client.Client
	conn   types.HijackedResponse
}

// ExecState is what the engine knows of an exec.
type ExecState struct {
	Running  bool
	ExitCode int
	PID      int // on the host; 0: not started, or the engine does not tell
}

// CreateExec prepares a program; nothing runs before Start.
func (e *Engine) CreateExec(ctx context.Context, id string, s ExecSpec) (*Exec, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	created, err := api.ContainerExecCreate(ctx, id, container.ExecOptions{
		Cmd: s.Argv, Env: s.Env, WorkingDir: s.Workdir, User: s.User, Tty: s.TTY,
		AttachStdin: s.Stdin, AttachStdout: true, AttachStderr: !s.TTY,
	})
	if err != nil {
		return nil, e.fault(err, "exec in container "+short(id))
	}
	return &Exec{ID: created.ID, TTY: s.TTY, engine: e, api: api}, nil
}

// Start runs the program. Its output comes by Output, until it ends or Close.
func (x *Exec) Start(ctx context.Context) error {
	conn, err := x.api.ContainerExecAttach(ctx, x.ID, container.ExecAttachOptions{Tty: x.TTY})
	if err != nil {
		return x.engine.fault(err, "start exec "+short(x.ID))
	}
	x.conn = conn
	return nil
}

// Output is what the program writes: multiplexed (see [Demux]), or raw from a
// terminal.
func (x *Exec) Output() io.Reader { return x.conn.Reader }

// Write is to the program's standard input.
func (x *Exec) Write(p []byte) (int, error) { return x.conn.Conn.Write(p) }

// CloseInput ends the program's standard input.
func (x *Exec) CloseInput() error { return x.conn.CloseWrite() }

// Close lets go of the connection. The program may go on.
func (x *Exec) Close() { x.conn.Close() }

// State asks the engine about the program.
func (x *Exec) State(ctx context.Context) (ExecState, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	s, err := x.api.ContainerExecInspect(ctx, x.ID)
	if err != nil {
		return ExecState{}, x.engine.fault(err, "inspect exec "+short(x.ID))
	}
	return ExecState{Running: s.Running, ExitCode: s.ExitCode, PID: s.Pid}, nil
}

// Resize sets the size of the program's terminal.
func (x *Exec) Resize(ctx context.Context, rows, cols uint16) error {
	if err := x.api.ContainerExecResize(ctx, x.ID, container.ResizeOptions{Height: uint(rows), Width: uint(cols)}); err != nil {
		return x.engine.fault(err, "resize exec "+short(x.ID))
	}
	return nil
}

// Find picks the container that a caller means by name: a service, or
// deployment/service. Of several of one service, as there are while it is being
// replaced, it is the one that runs, else the newest. More than one is found
// where the name is not unique.
func Find(all []Container, name string) (found []Container) {
	deployment, service, qualified := strings.Cut(name, "/")
	if !qualified {
		deployment, service = "", name
	}
	best := map[string]Container{}
	for _, c := range all {
		if c.Labels.Service != service || (qualified && c.Labels.Deployment != deployment) {
			continue
		}
		old, seen := best[c.Labels.Deployment]
		runs, ran := c.State == StateRunning, old.State == StateRunning
		if !seen || (runs && !ran) || (runs == ran && c.Created.After(old.Created)) {
			best[c.Labels.Deployment] = c
		}
	}
	for _, c := range best {
		found = append(found, c)
	}
	return found
}

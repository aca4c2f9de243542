package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// prepareContainer checks that a program can be run, and ended, in a container.
func (s *Server) prepareContainer(ctx context.Context, c Call, p program, w engine.Container) (func(context.Context) (process, error), error) {
	facts, err := s.o.Engine.Facts(ctx, w.ID)
	if err != nil {
		return nil, s.engineFault(err, w)
	}
	if !facts.Running {
		return nil, command.NewError(command.KindNotFound, "the container %s does not run", nameOf(w))
	}
	mount, seen := foreignMount(facts.PID)
	if !seen {
		return nil, command.NewError(command.KindRuntimeUnavailable,
			"this agent cannot see the processes of the container %s, and so could not end what %s starts; run the agent in the host's PID namespace, as a user that may signal them", nameOf(w), c.Verb)
	}
	mark := markOf(s.o.DeviceID, c.Verb, c.Caller.UID, c.Header.RequestID)
	return func(ctx context.Context) (process, error) {
		x, err := s.o.Engine.CreateExec(ctx, w.ID, engine.ExecSpec{
			Argv: p.argv, Env: p.environ(mark), Workdir: p.workdir, User: p.user, Stdin: p.stdin, TTY: p.tty,
		})
		if err != nil {
			return nil, s.engineFault(err, w)
		}
		if err := x.Start(ctx); err != nil {
			err = s.engineFault(err, w)
			if p.user != "" && kindOf(err) == command.KindRuntimeUnavailable {
				// What the engine says of it is lost on the way.
				err = command.NewError(command.KindRuntimeUnavailable, "the container engine did not start the program; is there such a user in the container %s? The agent's log says what the engine said", nameOf(w))
			}
			return nil, err
		}
		proc := &containerProcess{exec: x, name: nameOf(w), mount: mount, mark: mark}
		if p.tty {
			// Before the program could look at it. One that has ended already needs none.
			_ = proc.Resize(p.rows, p.cols)
		}
		return proc, nil
	}, nil
}

// foreignMount is the mount namespace of a process that is in another one than
// the agent, as every container's is.
func foreignMount(pid int) (namespace string, ok bool) {
	if pid <= 0 {
		return "", false
	}
	namespace, err := os.Readlink(mountNamespace(pid))
	own, ownErr := os.Readlink(mountNamespace(os.Getpid()))
	return namespace, err == nil && ownErr == nil && namespace != own
}

func mountNamespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/mnt", pid) }

// engineFault is an error of the engine as the caller learns it.
func (s *Server) engineFault(err error, w engine.Container) error {
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return command.NewError(command.KindNotFound, "the container %s was removed meanwhile", nameOf(w))
	case errors.Is(err, engine.ErrConflict):
		return command.NewError(command.KindNotFound, "the container %s does not run", nameOf(w))
	}
	s.log.Error("the container engine refused to run a program", "container", nameOf(w), "error", err)
	return command.NewError(command.KindRuntimeUnavailable, "the container engine could not run the program; the agent's log says why")
}

// containerProcess is a program in a container.
type containerProcess struct {
	exec  *engine.Exec
	name  string
	mount string // the container's mount namespace: what tells its processes from others
	mark  string

	mu     sync.Mutex
	leader *leader // nil: not looked up
	closed bool    // nobody is to be found any more
	close  sync.Once
}

func (p *containerProcess) Output(write func(command.Stream, []byte) error) error {
	if p.exec.TTY {
		return engine.Raw(p.exec.Output(), func(b []byte) error { return write(command.StreamPTY, b) })
	}
	return engine.Demux(p.exec.Output(), func(out engine.Output, b []byte) error { return write(stream(out), b) })
}

func (p *containerProcess) Write(b []byte) (int, error) { return p.exec.Write(b) }
func (p *containerProcess) CloseInput() error           { return p.exec.CloseInput() }

func (p *containerProcess) Close() {
	p.close.Do(func() {
		p.exec.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.leader != nil {
			p.leader.close()
		}
		p.closed = true
	})
}

func (p *containerProcess) Resize(rows, cols uint16) error {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	return p.exec.Resize(ctx, rows, cols)
}

// engineTimeout bounds one question to the engine.
const engineTimeout = 10 * time.Second

// Wait asks the engine until the program has ended.
func (p *containerProcess) Wait(ctx context.Context) (int, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		state, err := p.exec.State(ctx)
		switch {
		case errors.Is(err, engine.ErrNotFound):
			return 0, command.NewError(command.KindStartedNoResult, "the container %s was removed while the program ran; its exit code is not known", p.name)
		case err != nil:
			return 0, err
		case !state.Running:
			return state.ExitCode, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// find is the program's process on the host, which the engine tells as soon as
// it runs. nil: it has ended.
func (p *containerProcess) find() (*leader, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leader != nil || p.closed {
		return p.leader, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	for {
		state, err := p.exec.State(ctx)
		if err != nil {
			return nil, err
		}
		if state.PID != 0 && state.Running {
			l, err := openLeader(state.PID)
			if err != nil {
				return nil, nil // it ended just now
			}
			// The engine still says so after the process was taken hold of: it is that one.
			again, err := p.exec.State(ctx)
			mount, linkErr := os.Readlink(mountNamespace(state.PID))
			if err == nil && again.Running && again.PID == state.PID && linkErr == nil && mount == p.mount {
				p.leader = l
				return l, nil
			}
			l.close()
			if err == nil && again.Running {
				return nil, fmt.Errorf("process %d is not one of the container %s", state.PID, p.name)
			}
		}
		if !state.Running {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Attend looks the process up while it runs: once its first process has ended,
// what it left behind could be found only by the mark.
func (p *containerProcess) Attend() { _, _ = p.find() }

func (p *containerProcess) Signal(name string) error {
	sig, err := signalNamed(name)
	if err != nil {
		return err
	}
	l, err := p.find()
	if err != nil || l == nil {
		return err
	}
	return l.signal(sig)
}

func (p *containerProcess) Kill() {
	l, err := p.find()
	if err != nil || l == nil {
		newFamily(p.mark).kill() // of what it left behind
		return
	}
	l.killAll(p.mark)
}

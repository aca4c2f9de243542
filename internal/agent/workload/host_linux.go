package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/pty"
)

// prepareHost checks that a program can be run on the device itself, as the
// policy's user.
func (s *Server) prepareHost(c Call, p program) (func(context.Context) (process, error), error) {
	as, err := lookUp(s.o.Policy.HostUser)
	if err != nil {
		s.log.Error("the user of programs on the host", "error", err)
		return nil, command.NewError(command.KindDenied, "this device cannot run programs as the user that its policy names; the agent's log says why")
	}
	if len(p.argv) == 0 {
		p.argv = []string{as.shell, "-l"}
	}
	mark := markOf(s.o.DeviceID, c.Verb, c.Caller.UID, c.Header.RequestID)
	return func(context.Context) (process, error) {
		h, err := startHost(p, as, mark)
		if err != nil {
			return nil, err
		}
		s.containment.Do(func() {
			if h.cgroup != nil {
				s.log.Info("programs on the host are held by a cgroup of their own", "parent", filepath.Dir(h.cgroup.dir))
			} else {
				s.log.Warn("programs on the host are not held by a cgroup, since the agent can make none; what they start is found by its parent, its session and its environment", "error", h.uncontained)
			}
		})
		return h, nil
	}, nil
}

// account is the user that programs on the host run as.
type account struct {
	name, home, shell string
	credential        *syscall.Credential // nil: the agent's own
}

func lookUp(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("uid of %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("gid of %s: %w", name, err)
	}
	a := account{name: u.Username, home: u.HomeDir, shell: "/bin/sh"}
	if int(uid) == os.Getuid() && uid != 0 {
		return a, nil
	}
	if os.Getuid() != 0 {
		return account{}, fmt.Errorf("the agent runs as uid %d and cannot become %s (uid %d)", os.Getuid(), name, uid)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return account{}, fmt.Errorf("groups of %s: %w", name, err)
	}
	a.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, g := range groups {
		id, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("group %q of %s: %w", g, name, err)
		}
		a.credential.Groups = append(a.credential.Groups, uint32(id))
	}
	return a, nil
}

// hostPath is where programs are looked for; nothing of the agent's own
// environment, which may hold secrets, reaches them.
const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hostProcess is a program on the device itself.
type hostProcess struct {
	cmd         *exec.Cmd
	leader      *leader
	mark        string
	cgroup      *cgroup // nil: none can be made, and uncontained says why
	uncontained error
	stdin       io.WriteCloser
	out         []*os.File // what the program writes
	names       []command.Stream
	tty         *os.File // nil: none
	exited      chan struct{}
	code        int
	err         error
	once        sync.Once
}

func startHost(p program, as account, mark string) (_ *hostProcess, err error) {
	h := &hostProcess{mark: mark, exited: make(chan struct{})}
	env := []string{"PATH=" + hostPath, "HOME=" + as.home, "USER=" + as.name, "LOGNAME=" + as.name, "SHELL=" + as.shell}
	env = append(env, p.environ(mark)...)
	path, err := lookPath(p.argv[0])
	if err != nil {
		return nil, err
	}
	h.cmd = &exec.Cmd{Path: path, Args: p.argv, Env: env, Dir: p.workdir, SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: as.credential}}
	if h.cmd.Dir == "" {
		h.cmd.Dir = as.home
		if info, err := os.Stat(as.home); err != nil || !info.IsDir() {
			h.cmd.Dir = "/"
		}
	}
	var theirs []*os.File // closed once the program has them
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			h.closeFiles()
		}
	}()
	if p.tty {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, slave)
		h.tty, h.out, h.names = master, []*os.File{master}, []command.Stream{command.StreamPTY}
		if err := pty.SetSize(master, p.rows, p.cols); err != nil {
			return nil, err
		}
		if as.credential != nil {
			if err := slave.Chown(int(as.credential.Uid), -1); err != nil {
				return nil, err
			}
		}
		h.cmd.Stdin, h.cmd.Stdout, h.cmd.Stderr = slave, slave, slave
		h.cmd.SysProcAttr.Setctty = true
	} else {
		for _, name := range []command.Stream{command.StreamStdout, command.StreamStderr} {
			r, w, err := os.Pipe()
			if err != nil {
				return nil, err
			}
			theirs = append(theirs, w)
			h.out, h.names = append(h.out, r), append(h.names, name)
			if name == command.StreamStdout {
				h.cmd.Stdout = w
			} else {
				h.cmd.Stderr = w
			}
		}
		if p.stdin {
			r, w, err := os.Pipe()
			if err != nil {
				return nil, err
			}
			theirs = append(theirs, r)
			h.cmd.Stdin, h.stdin = r, w
		}
	}
	if err := h.start(); err != nil {
		return nil, startFault(err)
	}
	h.leader, h.err = openLeader(h.cmd.Process.Pid)
	if h.err != nil { // no pidfd in this kernel: without it nothing could be ended for sure
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
		if h.cgroup != nil {
			h.cgroup.close()
		}
		return nil, command.NewError(command.KindRuntimeUnavailable, "this device's kernel has no pidfd_open, which running programs on the host needs")
	}
	go func() { // ends with the program
		defer close(h.exited)
		err := h.cmd.Wait()
		var exit *exec.ExitError
		switch {
		case err == nil:
		case errors.As(err, &exit):
			h.code = exit.ExitCode()
			if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				h.code = 128 + int(status.Signal()) // as shells and container engines do
			}
		default:
			h.err = err
		}
	}()
	return h, nil
}

// start starts the program in a cgroup of its own, if there can be one.
func (h *hostProcess) start() error {
	if h.cgroup, h.uncontained = newCgroup(h.mark); h.cgroup == nil {
		return h.cmd.Start()
	}
	plain := h.cmd
	inside := *plain.SysProcAttr
	inside.UseCgroupFD, inside.CgroupFD = true, int(h.cgroup.at.Fd())
	h.cmd = &exec.Cmd{Path: plain.Path, Args: plain.Args, Env: plain.Env, Dir: plain.Dir, Stdin: plain.Stdin, Stdout: plain.Stdout, Stderr: plain.Stderr, SysProcAttr: &inside}
	if h.cmd.Start() == nil {
		return nil
	}
	// Either it does not start at all, as the next attempt tells, or the kernel,
	// or a filter of system calls, does not let it start in there: then it is moved.
	h.cmd = plain
	err := h.cmd.Start()
	if err == nil {
		err = h.cgroup.add(h.cmd.Process.Pid)
		h.uncontained = err
	}
	if err != nil {
		h.cgroup.close()
		h.cgroup = nil
	}
	if h.cmd.Process != nil {
		return nil
	}
	return err
}

func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(hostPath) {
		path := dir + "/" + name
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", command.NewError(command.KindNotFound, "exec: there is no program of that name in %s", hostPath)
}

// startFault says why a program does not start, without a word of what the caller
// gave: it goes into audit records and logs, and what is called a program may be
// a whole command line with a password in it.
func startFault(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return command.NewError(command.KindNotFound, "exec: the program, or its working directory, is not there")
	case errors.Is(err, fs.ErrPermission):
		return command.NewError(command.KindDenied, "exec: the user of programs on this device may not run the program, or may not enter its working directory")
	}
	if inner := errors.Unwrap(err); inner != nil { // a PathError's
		err = inner
	}
	return fmt.Errorf("start a program: %w", err)
}

// What a program left behind may go on writing to its output for orphanGrace.
// Then only what waits there already is read: at most what a pipe holds.
const (
	orphanGrace = 500 * time.Millisecond
	pipeHolds   = 1 << 20
)

func (h *hostProcess) Output(write func(command.Stream, []byte) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(h.out))
	for i, f := range h.out {
		wg.Go(func() {
			errs[i] = h.read(f, func(b []byte) error { return write(h.names[i], b) })
		})
	}
	wg.Go(func() {
		<-h.exited
		for _, f := range h.out {
			_ = f.SetReadDeadline(time.Now().Add(orphanGrace)) // fails where it is closed
		}
	})
	wg.Wait()
	return errors.Join(errs...)
}

// read hands on one output until it ends, or is over by its deadline.
func (h *hostProcess) read(f *os.File, write func([]byte) error) error {
	buf := make([]byte, command.MaxChunk)
	late := -1 // bytes read since the deadline; -1: it has not passed
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := write(buf[:n]); err != nil {
				return err
			}
			if late >= 0 {
				late += n
			}
		}
		switch {
		case err == nil && late < pipeHolds:
		case errors.Is(err, os.ErrDeadlineExceeded) && late < 0:
			// It says so whether or not something waits, as it does where the reader
			// was slow to take what came before.
			late = 0
		case err == nil, errors.Is(err, io.EOF), errors.Is(err, syscall.EIO), errors.Is(err, os.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return nil // EIO is the end of a terminal
		default:
			return err
		}
		if late >= 0 {
			_ = f.SetReadDeadline(time.Now().Add(lastLook))
		}
	}
}

// lastLook is how long a read waits for what should be there.
const lastLook = 10 * time.Millisecond

func (h *hostProcess) Write(p []byte) (int, error) {
	switch {
	case h.tty != nil:
		return h.tty.Write(p)
	case h.stdin != nil:
		return h.stdin.Write(p)
	}
	return 0, os.ErrClosed
}

// CloseInput ends standard input; a terminal says so with Ctrl-D.
func (h *hostProcess) CloseInput() error {
	switch {
	case h.tty != nil:
		_, err := h.tty.Write([]byte{4})
		return err
	case h.stdin != nil:
		return h.stdin.Close()
	}
	return nil
}

func (h *hostProcess) Resize(rows, cols uint16) error {
	if h.tty == nil {
		return nil
	}
	return pty.SetSize(h.tty, rows, cols)
}

func (h *hostProcess) Signal(name string) error {
	sig, err := signalNamed(name)
	if err != nil {
		return err
	}
	return h.leader.signal(sig)
}

func (h *hostProcess) Attend() {}

func (h *hostProcess) Kill() {
	if h.cgroup != nil {
		h.cgroup.kill()
	}
	h.leader.killAll(h.mark)
}

func (h *hostProcess) Wait(ctx context.Context) (int, error) {
	select {
	case <-h.exited:
		return h.code, h.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (h *hostProcess) Close() {
	h.once.Do(func() {
		h.closeFiles()
		h.leader.close()
		if h.cgroup != nil {
			h.cgroup.close()
		}
	})
}

func (h *hostProcess) closeFiles() {
	for _, f := range h.out {
		f.Close()
	}
	if h.stdin != nil {
		h.stdin.Close()
	}
}

package workload

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// leader is the first process of a program: the engine, like the agent, starts
// each in a session of its own (setsid(2)), whose id is the process's.
type leader struct {
	pid int

	mu sync.Mutex
	fd int // -1: closed
}

// openLeader takes hold of a process, so that a signal cannot reach another one
// that has the number later.
func openLeader(pid int) (*leader, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return &leader{pid: pid, fd: fd}, nil
}

func (l *leader) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}

// signal sends sig to the process; one that has ended needs none.
func (l *leader) signal(sig unix.Signal) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return nil
	}
	if err := unix.PidfdSendSignal(l.fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal %v to process %d: %w", sig, l.pid, err)
	}
	return nil
}

// killAll kills the process and whatever it started, as far as can be told (see
// family), and what has the mark.
func (l *leader) killAll(mark string) {
	f := newFamily(mark)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		f.sessions[l.pid] = true
		if err := unix.PidfdSendSignal(l.fd, 0, nil, 0); err == unix.ESRCH { // it has ended
			// A number is not given out again while a session has it, so what is in the
			// session is the program's; unless there was nothing left and it was.
			if _, err := os.Stat("/proc/" + strconv.Itoa(l.pid)); err == nil {
				delete(f.sessions, l.pid)
			}
		}
	}
	f.kill()
}

// signalNamed reads a signal's name, with or without "SIG".
func signalNamed(name string) (unix.Signal, error) {
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if sig == 0 {
		return 0, fmt.Errorf("%.20q is not the name of a signal", name)
	}
	return sig, nil
}

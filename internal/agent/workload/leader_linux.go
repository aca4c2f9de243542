package workload

import (
	"bytes"
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

// killSession kills the process and all others of its session: also those that a
// shell gave process groups of their own.
func (l *leader) killSession() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return
	}
	if err := unix.PidfdSendSignal(l.fd, unix.SIGKILL, nil, 0); err == unix.ESRCH {
		// A number is not given out again while a session has it, so what is in the
		// session is the program's; unless there was nothing left and it was.
		if _, err := os.Stat("/proc/" + strconv.Itoa(l.pid)); err == nil {
			return
		}
	}
	const rounds = 8 // what forks meanwhile is found in the next
	for range rounds {
		members := sessionMembers(l.pid)
		if len(members) == 0 {
			return
		}
		for _, pid := range members {
			_ = unix.Kill(pid, unix.SIGKILL) // fails where it has ended
		}
	}
}

// sessionMembers lists the processes of a session that are not dead.
func sessionMembers(sid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// proc(5): pid (comm) state ppid pgrp session …; comm may hold anything.
		_, rest, ok := bytes.Cut(raw[bytes.LastIndexByte(raw, ')')+1:], []byte(" "))
		fields := bytes.Fields(rest)
		if !ok || len(fields) < 4 || string(fields[0]) == "Z" || string(fields[0]) == "X" {
			continue
		}
		if s, err := strconv.Atoi(string(fields[3])); err == nil && s == sid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// signalNamed reads a signal's name, with or without "SIG".
func signalNamed(name string) (unix.Signal, error) {
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if sig == 0 {
		return 0, fmt.Errorf("%.20q is not the name of a signal", name)
	}
	return sig, nil
}

package workload

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// family is a program and all that it started, as far as /proc shows: what has
// its mark in the environment, what is in its session or in one that a member
// made (setsid(2)), and children of members. A process that leaves its session
// and loses its parent is still known by the mark; one that besides clears its
// environment is known only where it was seen before, or by the program's cgroup.
type family struct {
	marks [][]byte // "NAME=value": of one program, or of several
	// sessions are ids of sessions that are the family's, and killed are processes
	// that were sent the signal.
	sessions map[int]bool
	killed   map[identity]bool
}

// identity is a process whose number another one may have later.
type identity struct {
	pid   int
	start string // in clock ticks after boot
}

func newFamily(marks ...string) *family {
	f := &family{sessions: map[int]bool{}, killed: map[identity]bool{}}
	for _, m := range marks {
		f.marks = append(f.marks, []byte(markName+"="+m))
	}
	return f
}

// kill ends all members. What forks meanwhile is found in the next round.
func (f *family) kill() {
	const rounds = 64
	for range rounds {
		before := len(f.killed)
		for _, p := range f.members() {
			if !f.killed[p.identity] && p.kill() {
				f.killed[p.identity] = true
			}
		}
		if len(f.killed) == before {
			return
		}
	}
}

// members lists the processes of the family that are not dead.
func (f *family) members() []processInfo {
	all := processes()
	leads := make(map[int]bool, len(all)) // by pid: a process of that number is there
	in := make(map[int]bool)
	for _, p := range all {
		leads[p.pid] = true
		if f.sessions[p.session] || f.marked(p) {
			in[p.pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			switch {
			case in[p.pid]:
				// A session that a member made, or whose first process is gone, is
				// the family's; another one it can only have come from.
				if !f.sessions[p.session] && p.session > 1 && (in[p.session] || !leads[p.session]) {
					f.sessions[p.session], grown = true, true
				}
			case in[p.parent], f.sessions[p.session]:
				in[p.pid], grown = true, true
			}
		}
	}
	var members []processInfo
	for _, p := range all {
		if in[p.pid] && !p.dead {
			members = append(members, p)
		}
	}
	return members
}

// marked tells whether one of the marks is in a process's environment.
func (f *family) marked(p processInfo) bool {
	if p.dead || len(f.marks) == 0 {
		return false
	}
	environment, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/environ")
	if err != nil || !bytes.Contains(environment, []byte(markName+"=")) {
		return false // ended, or not to be seen
	}
	for variable := range bytes.SplitSeq(environment, []byte{0}) {
		for _, m := range f.marks {
			if bytes.Equal(variable, m) {
				return true
			}
		}
	}
	return false
}

// processInfo is a line of the table of processes.
type processInfo struct {
	identity
	parent, session int
	dead            bool
}

// kill sends SIGKILL, unless the number is another process's by now.
func (p processInfo) kill() bool {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if now, ok := processAt(p.pid); !ok || now.identity != p.identity {
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// processes is the table of processes.
func processes() []processInfo {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	all := make([]processInfo, 0, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := processAt(pid); ok {
			all = append(all, p)
		}
	}
	return all
}

func processAt(pid int) (processInfo, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return processInfo{}, false
	}
	return parseStat(pid, raw)
}

// parseStat reads /proc/<pid>/stat (proc(5)): pid (comm) state ppid pgrp session …
// starttime. comm may hold anything.
func parseStat(pid int, raw []byte) (processInfo, bool) {
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	const state, parent, session, start = 0, 1, 3, 19
	if len(fields) <= start {
		return processInfo{}, false
	}
	p := processInfo{identity: identity{pid, string(fields[start])}, dead: fields[state][0] == 'Z' || fields[state][0] == 'X'}
	var err error
	if p.parent, err = strconv.Atoi(string(fields[parent])); err != nil {
		return processInfo{}, false
	}
	if p.session, err = strconv.Atoi(string(fields[session])); err != nil {
		return processInfo{}, false
	}
	return p, true
}

package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
)

// launchArgument makes a supervisor start another one, say its process id and end,
// so that the one that stays is not a child of the program that called Up: nobody
// there would collect it.
const launchArgument = "launch"

// namespaces are those that a node has of its own.
const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS

// launch is the life of the process in between.
func launch() error {
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{supervisorName},
		Stderr:      os.Stderr,
		ExtraFiles:  []*os.File{os.NewFile(orderFD, "order"), os.NewFile(lockFD, "lock")},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	return nil
}

// startSupervisor starts a supervisor and connects its node with this machine. The
// lock is the supervisor's from then on.
func startSupervisor(ctx context.Context, o order, lock *os.File) error {
	l := layout{o.Dir}
	log, err := os.OpenFile(l.log("supervisor"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	defer write.Close()
	var stdout bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", launchArgument)
	cmd.Args[0] = supervisorName
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + searchPath}
	cmd.Stdout, cmd.Stderr = &stdout, log
	cmd.ExtraFiles = []*os.File{read, lock}
	err = cmd.Run()
	read.Close()
	if err != nil {
		return fmt.Errorf("local cluster: start the node in namespaces of its own: %w: %s: in a container, run it privileged", err, lastLines(l.log("supervisor"), 1))
	}
	pid, err := strconv.Atoi(strings.TrimSpace(stdout.String()))
	if err != nil {
		return fmt.Errorf("local cluster: read process id of supervisor: %w", err)
	}
	if err := json.NewEncoder(write).Encode(o); err != nil {
		return fmt.Errorf("local cluster: tell supervisor: %w", err)
	}
	if err := attachNode(o.Name, o.Addresses, pid); err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	if _, err := write.Write([]byte{linkIsThere}); err != nil {
		return fmt.Errorf("local cluster: tell supervisor: %w: %s", err, lastLines(l.log("supervisor"), 1))
	}
	return nil
}

// supervisorLock is the file that a supervisor holds locked while it lives.
func supervisorLock(l layout) string { return l.path("lock") }

// alive says whether the cluster's supervisor lives.
func alive(l layout) (bool, error) {
	if _, err := os.Stat(supervisorLock(l)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, fmt.Errorf("local cluster: %w", err)
	}
	file, err := filelock.Open(supervisorLock(l))
	if errors.Is(err, filelock.ErrLocked) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("local cluster: %w", err)
	}
	file.Close()
	return false, nil
}

// endTimeout bounds the end of a node that was killed. The kernel takes as long as
// its slowest process.
const endTimeout = 15 * time.Second

// killSupervisor ends the supervisor, if it lives, and with it everything in its
// node. It returns when all of that has ended.
func killSupervisor(ctx context.Context, l layout) error {
	living, err := alive(l)
	if err != nil || !living {
		return err
	}
	pid, err := supervisorPID(l)
	if err != nil {
		return err
	}
	process, err := os.FindProcess(pid) // holds on to the process, not the number
	if err != nil {
		return fmt.Errorf("local cluster: find supervisor: %w", err)
	}
	defer process.Release() //nolint:errcheck // nothing is lost
	// The number may have passed to another process between reading and finding it.
	if !isSupervisor(pid) {
		return fmt.Errorf("local cluster: process %d is not the supervisor of %s: look for the one called %s and end it", pid, l.dir, supervisorName)
	}
	if err := process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("local cluster: end supervisor %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	// The lock is free when the supervisor has closed its files, which is before the
	// processes below it have ended; its entry in /proc goes after them.
	for {
		living, err := alive(l)
		if err != nil {
			return err
		}
		if !living && !isSupervisor(pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("local cluster: the processes below supervisor %d do not end: %w", pid, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// supervisorPID waits a moment for a supervisor that has just started to say its id.
func supervisorPID(l layout) (int, error) {
	deadline := time.Now().Add(2 * time.Second)
	for {
		s, err := readStatus(l)
		if err == nil && s.PID > 0 {
			return s.PID, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("local cluster: the supervisor of %s has not said its process id: end the process called %s", l.dir, supervisorName)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// isSupervisor says whether process pid is one, and not a zombie, whose command
// line is empty.
func isSupervisor(pid int) bool {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && strings.HasPrefix(string(content), supervisorName+"\x00")
}

// lastLines returns the last n lines of a log in one, for an error message.
func lastLines(path string, n int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "no log"
	}
	const most = 600 // bytes of a line
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), most)]
	}
	return strings.Join(lines, " / ")
}

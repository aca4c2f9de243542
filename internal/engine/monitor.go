package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// KillMonitor ends the monitor (conmon) of a container, and tells whether there
// was one. Podman starts it with each start, and does not know it any more when it
// is killed amid that: the monitor keeps the container's ports, and the container
// cannot be started. It is for a container that does not run: the output of one
// that does would be lost. An engine that is not on this machine, or whose
// processes cannot be seen, has none.
func (e *Engine) KillMonitor(ctx context.Context, id string) (killed bool, err error) {
	if !strings.HasPrefix(e.socket, "unix://") {
		return false, nil
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // fails only for a bad pattern
	for _, f := range files {
		if ctx.Err() != nil {
			return killed, ctx.Err()
		}
		data, err := os.ReadFile(f)
		if err != nil || !isMonitor(data, id) {
			continue // ended, or something else
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil {
			err = kill(pid)
		}
		if err != nil {
			return killed, fmt.Errorf("kill process %d, the monitor of container %s: %w; end it by hand", pid, short(id), err)
		}
		killed = true
	}
	return killed, nil
}

func kill(pid int) error {
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// isMonitor reads /proc/PID/cmdline: conmon is called with "-c" and the whole id.
func isMonitor(cmdline []byte, id string) bool {
	args := bytes.Split(cmdline, []byte{0})
	if filepath.Base(string(args[0])) != "conmon" {
		return false
	}
	i := slices.IndexFunc(args, func(a []byte) bool { return string(a) == "-c" })
	return i > 0 && i+1 < len(args) && id != "" && string(args[i+1]) == id
}

package workload

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup holds a program of the host and whatever it starts: no process can leave
// it that may not write to the file system of cgroups. It lies below the agent's
// own, in the unified hierarchy (cgroups(7), version 2), also where that stands
// beside those of version 1.
type cgroup struct {
	dir string
	at  *os.File // dir, for clone3(2)
}

// newCgroup makes one of that mark. It fails where the agent may make none, as in
// most containers and without root.
func newCgroup(mark string) (*cgroup, error) {
	parent, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	tidy(parent)
	g := &cgroup{dir: cgroupOf(parent, mark)}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	if g.at, err = os.Open(g.dir); err != nil {
		return nil, errors.Join(err, os.Remove(g.dir))
	}
	return g, nil
}

const cgroupPrefix = "fleet-exec-"

func cgroupOf(parent, mark string) string { return filepath.Join(parent, cgroupPrefix+mark) }

// ownCgroup is the directory of the agent's own cgroup.
func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return cgroupDir(string(mounts), string(own))
}

var errNoCgroups = errors.New("the unified hierarchy of cgroups is not mounted")

// cgroupDir finds the directory from what /proc/self/mountinfo and
// /proc/self/cgroup say.
func cgroupDir(mounts, own string) (string, error) {
	path, found := "", false
	for line := range strings.Lines(own) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			path, found = rest, true
		}
	}
	if !found || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/..") { // "..": outside of what a namespace shows
		return "", errNoCgroups
	}
	for line := range strings.Lines(mounts) {
		// id parent device root mount-point options … - type source options
		left, right, _ := strings.Cut(line, " - ")
		fields, types := strings.Fields(left), strings.Fields(right)
		if len(fields) < 6 || len(types) == 0 || types[0] != "cgroup2" {
			continue
		}
		root, at := fields[3], fields[4]
		if root == "/" {
			root = ""
		}
		if below, ok := strings.CutPrefix(path, root); ok && (below == "" || below[0] == '/') {
			return filepath.Join(at, below), nil
		}
	}
	return "", errNoCgroups
}

// add moves a process in; what it has started before stays where it is.
func (g *cgroup) add(pid int) error {
	return os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// kill ends all that is in the cgroup.
func (g *cgroup) kill() {
	if os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	g.killByHand()
}

// killByHand is kill with kernels before 5.14: nothing forks while it is frozen,
// and a frozen process can be killed.
func (g *cgroup) killByHand() {
	freeze := filepath.Join(g.dir, "cgroup.freeze")
	_ = os.WriteFile(freeze, []byte("1"), 0)
	defer func() { _ = os.WriteFile(freeze, []byte("0"), 0) }()
	for _, pid := range g.pids() {
		_ = unix.Kill(pid, unix.SIGKILL) // fails where it has ended
	}
}

// pids are the processes in the cgroup.
func (g *cgroup) pids() (pids []int) {
	list, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return nil // there is no such cgroup
	}
	for line := range bytes.FieldsSeq(list) {
		if pid, err := strconv.Atoi(string(line)); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// close takes the cgroup away, if nothing is left in it; what is left keeps it.
func (g *cgroup) close() {
	if g.at != nil {
		_ = g.at.Close()
	}
	_ = os.Remove(g.dir)
}

// tidy takes away cgroups whose programs had left something behind, that has
// ended since. Those of the last minute may be about to be used.
func tidy(parent string) {
	dirs, err := filepath.Glob(cgroupOf(parent, "*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Minute {
			_ = os.Remove(dir) // fails where it is in use
		}
	}
}

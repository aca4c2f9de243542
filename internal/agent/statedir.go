package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

// Files of the state directory.
const (
	lockFile      = "lock"
	auditFile     = "audit.spool"
	journalFile   = "requests.journal"
	instancesFile = "instances.json"
	desiredFile   = "desired-state"
)

// stateDir is the directory in which the agent keeps what must survive a
// restart. The zero value keeps nothing.
type stateDir struct {
	path string
	lock *os.File
}

// openStateDir makes the directory if it is missing and locks it: two agents on
// one spool would break its chain. One that everybody may write to is refused: what
// is in it says what this device runs, and what it has run.
func openStateDir(path string) (*stateDir, error) {
	if path == "" {
		return &stateDir{}, nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("state_dir: %w; name a directory that the agent may write to", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return nil, fmt.Errorf("state_dir %s may be written to by everybody (mode %#o): look at what is in it and chmod 700 it, or name another one", path, mode)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state_dir: %w; name a directory that the agent may write to", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state_dir %s is in use by another agent; stop it, or give each agent a directory of its own", path)
		}
		return nil, fmt.Errorf("state_dir: lock %s: %w", path, err)
	}
	for _, name := range []string{instancesFile, desiredFile} {
		if err := atomicfile.Clean(filepath.Join(path, name)); err != nil {
			lock.Close()
			return nil, fmt.Errorf("state_dir: %w", err)
		}
	}
	return &stateDir{path: path, lock: lock}, nil
}

func (d *stateDir) file(name string) string {
	if d.path == "" {
		return ""
	}
	return filepath.Join(d.path, name)
}

func (d *stateDir) close() {
	if d.lock != nil {
		d.lock.Close() // gives the lock up
		d.lock = nil
	}
}

// keptInstances is how many earlier runs are remembered.
const keptInstances = 16

type instances struct {
	Schema    int      `json:"schema"`
	DeviceID  string   `json:"device_id"`
	Instances []string `json:"instances"` // the latest last
}

// remember adds this run to the earlier ones, which it gives. A file that cannot
// be read is made anew, and reported by damage: what is lost is only that
// commands for an earlier run are answered.
func (d *stateDir) remember(device, instance string) (earlier []string, damage string, err error) {
	if d.path == "" {
		return nil, "", nil
	}
	name := d.file(instancesFile)
	var kept instances
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, "", fmt.Errorf("state_dir: %w", err)
	default:
		if err := json.Unmarshal(data, &kept); err != nil || kept.Schema != 1 {
			damage = name + " could not be read and was made anew"
			kept = instances{}
		}
	}
	if kept.DeviceID == device {
		earlier = kept.Instances
	}
	all := append(slices.Clone(earlier), instance)
	if len(all) > keptInstances {
		all = all[len(all)-keptInstances:]
	}
	data, err = json.Marshal(instances{Schema: 1, DeviceID: device, Instances: all})
	if err == nil {
		err = atomicfile.Write(name, data)
	}
	if err != nil {
		return nil, "", fmt.Errorf("state_dir: %w", err)
	}
	return earlier, damage, nil
}

package stack

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
	"github.com/harmony-fleet/fleet/internal/broker"
)

// directory is where a system keeps its files:
//
//	lock             held while a system runs here
//	secrets.json     passwords of the static users and of the callout, mode 0600
//	nats/            JetStream
//	callout/         seeds of the callout service
//	issuer/          signing keys, and the address it listened on
//	keys/            machine key files of the devices, mode 0600
//	agents/<name>/   state of each agent
//	tls/             generated authority and server certificate
type directory struct {
	path      string
	temporary bool
	lock      *os.File
}

// openDirectory makes path, or a temporary directory where path is empty, and
// takes its lock.
func openDirectory(path string) (*directory, error) {
	d := &directory{path: path, temporary: path == ""}
	if d.temporary {
		sweep()
		tmp, err := os.MkdirTemp("", temporaryPrefix)
		if err != nil {
			return nil, fmt.Errorf("make a temporary directory: %w; set TMPDIR to a directory that can be written, or name a data directory", err)
		}
		d.path = tmp
	} else {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("data directory %s: %w", path, err)
		}
		d.path = abs
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return nil, fmt.Errorf("data directory %s cannot be made: %w; choose one that this user can write", abs, err)
		}
	}
	lock, err := os.OpenFile(d.join("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s cannot be written: %w; choose one that this user can write", d.path, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another fleet; stop that one or choose another directory", d.path)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", d.path, err)
	}
	d.lock = lock
	return d, nil
}

const temporaryPrefix = "fleet-up-"

// sweep removes temporary directories whose fleet was killed: their lock is free.
// A lock file younger than a minute may belong to one that is just starting.
func sweep() {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), temporaryPrefix+"*", "lock")) // the pattern is well formed
	for _, path := range locks {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		lock, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // somebody else's
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		_ = lock.Close()
	}
}

func (d *directory) join(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// close gives the lock back and removes a temporary directory.
func (d *directory) close() error {
	var err error
	if d.temporary {
		err = os.RemoveAll(d.path)
	}
	// The lock goes last: whoever takes it finds the directory whole or gone.
	return errors.Join(err, d.lock.Close())
}

// sub makes a directory inside.
func (d *directory) sub(elem ...string) (string, error) {
	path := d.join(elem...)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return path, nil
}

// secrets are the passwords of a system. They outlive a restart, so that other
// NATS clients can keep theirs.
type secrets struct {
	Ops     string `json:"ops"`
	Data    string `json:"data"`
	Device  string `json:"device"`
	Callout string `json:"callout"`
}

// String and GoString keep passwords out of messages.
func (secrets) String() string   { return "secrets(redacted)" }
func (secrets) GoString() string { return "secrets(redacted)" }

func (s secrets) userPass() *broker.UserPass {
	return &broker.UserPass{Ops: s.Ops, Data: s.Data, Device: s.Device}
}

// loadSecrets reads the passwords, or makes them the first time.
func (d *directory) loadSecrets() (secrets, error) {
	path := d.join("secrets.json")
	raw, err := os.ReadFile(path)
	if err == nil {
		var s secrets
		if err := json.Unmarshal(raw, &s); err != nil || s.Ops == "" || s.Data == "" || s.Device == "" || s.Callout == "" {
			return secrets{}, fmt.Errorf("%s is damaged; remove it to have new passwords made", path)
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return secrets{}, fmt.Errorf("read passwords: %w", err)
	}
	s := secrets{Ops: rand.Text(), Data: rand.Text(), Device: rand.Text(), Callout: rand.Text()}
	raw, err = json.Marshal(s)
	if err != nil {
		return secrets{}, err
	}
	if err := atomicfile.Write(path, raw); err != nil {
		return secrets{}, fmt.Errorf("keep passwords: %w", err)
	}
	return s, nil
}

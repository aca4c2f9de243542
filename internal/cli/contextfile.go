package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/atomicfile"
	"github.com/harmony-fleet/fleet/internal/tomlconfig"
)

// contextFile is how to reach a fleet, as `fleet up` writes it for the
// commands of other terminals. It may be written by hand too, without [up].
type contextFile struct {
	Server string `toml:"server"`
	CA     string `toml:"ca,omitempty"`    // PEM file of the authorities that signed the server's certificate
	Token  string `toml:"token,omitempty"` // or user and password
	User   string `toml:"user,omitempty"`
	// DataUser and DataPassword are for commands that need the data account, where
	// users are static; a token enters both accounts.
	Password     string `toml:"password,omitempty"`
	DataUser     string `toml:"data_user,omitempty"`
	DataPassword string `toml:"data_password,omitempty"`

	Up *upMark `toml:"up,omitempty"`

	path string
}

// upMark says which `fleet up` wrote the file.
type upMark struct {
	PID int    `toml:"pid"`
	ID  string `toml:"id"` // random, one per run
}

// String and GoString keep secrets out of messages.
func (c contextFile) String() string   { return "context file " + c.path }
func (c contextFile) GoString() string { return c.String() }

const maxContextFile = 64 << 10 // bytes

// readContext reads a context file; nil without an error where there is none.
func readContext(path string) (*contextFile, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, rejected("context file: %v", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, rejected("context file %s holds credentials and can be read by others (mode %04o); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if info.Size() > maxContextFile {
		return nil, rejected("context file %s has %d bytes; that is not a context file", path, info.Size())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, rejected("context file: %v", err)
	}
	c, err := parseContext(raw)
	if err != nil {
		return nil, rejected("context file %s: %v; correct it, or remove it and run fleet up again", path, err)
	}
	c.path = path
	return c, nil
}

// parseContext reads the file's content. Its errors name keys, never values.
func parseContext(raw []byte) (*contextFile, error) {
	c, err := tomlconfig.Decode[contextFile](raw)
	if err != nil {
		return nil, err
	}
	if c.Server == "" {
		return nil, errors.New("has no server")
	}
	if err := checkServer(c.Server); err != nil {
		return nil, errors.New(messageOf(err))
	}
	return &c, nil
}

// keptError is why a context file was left as it is.
type keptError struct{ message string }

func (e keptError) Error() string { return e.message }

// claim writes the file for the `fleet up` that c.Up names, unless it is somebody
// else's: another fleet's that runs, or written by hand. Then it is left alone and
// the error is a keptError. What a fleet that is gone left behind is replaced.
func (c contextFile) claim(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	unlock, err := lockContext(path)
	if err != nil {
		return err
	}
	defer unlock()
	before, err := readContext(path)
	switch {
	case err != nil:
		return keptError{messageOf(err)}
	case before == nil || before.Up != nil && before.Up.ID == c.Up.ID:
	case before.Up == nil:
		return keptError{"the context file " + path + " was written by hand and is kept"}
	case before.Server != c.Server && before.runs(): // on one address there is one fleet: this one
		return keptError{fmt.Sprintf("the context file %s belongs to another fleet that runs (%s, process %d) and is kept", path, before.Server, before.Up.PID)}
	}
	return c.write(path)
}

// write puts the file in place as a whole, readable by this user only.
func (c contextFile) write(path string) error {
	raw, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	const head = "# Written by fleet up, for the fleet commands of other terminals. Holds credentials.\n"
	if err := atomicfile.Write(path, append([]byte(head), raw...)); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	return nil
}

// removeContext removes the file if the run with this id wrote it.
func removeContext(path, id string) error {
	unlock, err := lockContext(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	c, err := readContext(path)
	if err != nil || c == nil || c.Up == nil || c.Up.ID != id {
		return nil // somebody else's
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("context file: %w", err)
	}
	return nil
}

// lockContext keeps other runs of `fleet up` from the context file between a look
// at it and what follows. It locks the directory, so that no lock file is left.
func lockContext(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("context file: %w", err)
	}
	err = lockFile(dir)
	switch {
	case errors.Is(err, syscall.EBADF), errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.ENOTSUP):
		// A network file system that locks no directories: go on without.
	case err != nil:
		_ = dir.Close()
		return nil, fmt.Errorf("context file: lock %s: %w", filepath.Dir(path), err)
	}
	return func() { _ = dir.Close() }, nil // gives the lock back
}

// runs tells whether the fleet that the file speaks of is there: its process is,
// and something listens at its address. The number of a dead process may be
// another's by now.
func (c *contextFile) runs() bool {
	if c.stale() {
		return false
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return false
	}
	conn, err := net.DialTimeout("tcp", u.Host, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// stale tells whether the `fleet up` that wrote the file has ended.
func (c *contextFile) stale() bool {
	if c == nil || c.Up == nil || c.Up.PID <= 0 {
		return false
	}
	return errors.Is(syscall.Kill(c.Up.PID, 0), syscall.ESRCH)
}

// explain adds to an error of connecting that the context file is stale.
func (c *contextFile) explain(err error) error {
	if err == nil || !c.stale() {
		return err
	}
	return &command.Error{
		Outcome: outcomeOf(err),
		Message: fmt.Sprintf("the fleet up that wrote %s (process %d) no longer runs: start it again, or say --server and --token", c.path, c.Up.PID),
		Err:     err,
	}
}

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"

	"github.com/harmony-fleet/fleet/command"
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
	var c contextFile
	dec := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		var bad *toml.DecodeError
		switch {
		case errors.As(err, &strict):
			var keys []string
			for _, e := range strict.Errors {
				row, _ := e.Position()
				keys = append(keys, fmt.Sprintf("unknown key %q in line %d", strings.Join(e.Key(), "."), row))
			}
			return nil, errors.New(strings.Join(keys, ", "))
		case errors.As(err, &bad):
			// The library's own text may quote a value.
			row, column := bad.Position()
			return nil, fmt.Errorf("line %d, column %d is not valid", row, column)
		}
		return nil, errors.New("is not valid TOML")
	}
	if c.Server == "" {
		return nil, errors.New("has no server")
	}
	if err := checkServer(c.Server); err != nil {
		return nil, errors.New(messageOf(err))
	}
	return &c, nil
}

// write puts the file in place as a whole, readable by this user only.
func (c contextFile) write(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	raw, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".context-*") // mode 0600
	if err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // fails after the rename, as it should
	_, err = tmp.WriteString("# Written by fleet up, for the fleet commands of other terminals. Holds credentials.\n")
	if err == nil {
		_, err = tmp.Write(raw)
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	return nil
}

// removeContext removes the file if the run with this id wrote it last.
func removeContext(path, id string) error {
	c, err := readContext(path)
	if err != nil || c == nil || c.Up == nil || c.Up.ID != id {
		return nil // somebody else's now
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("context file: %w", err)
	}
	return nil
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

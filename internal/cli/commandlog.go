package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/command"
)

// maxCommandLog is the size in bytes at which the log is set aside as
// commands.log.1, in place of the one before.
const maxCommandLog = 1 << 20

// commandLogEntry is one command that ended without the device's knowledge:
// offline, refused by the broker, without an answer. What a device does know is
// in its audit trail. There is nothing secret in it: no token, no arguments.
type commandLogEntry struct {
	Time      time.Time       `json:"time"` // this machine's clock
	Server    string          `json:"server"`
	Verb      command.Verb    `json:"verb"`
	DeviceID  string          `json:"device_id,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	Outcome   command.Outcome `json:"outcome"`
	Message   string          `json:"message"`
}

// commandLogEntryOf is the entry of a command that ended with err.
func commandLogEntryOf(server string, verb command.Verb, err *command.Error) commandLogEntry {
	return commandLogEntry{
		Time: time.Now().UTC(), Server: server, Verb: verb,
		DeviceID: err.DeviceID, RequestID: err.RequestID, Outcome: err.Outcome, Message: messageOf(err),
	}
}

// unseen tells whether a command ended with something that no device knows.
func unseen(err *command.Error) bool {
	if err.Kind != "" {
		return false // the device answered
	}
	switch err.Outcome {
	case command.OutcomeOK, command.OutcomeRejected:
		return false // nothing was sent
	}
	return true
}

// logCommands appends entries. A log that cannot be written does not fail the
// command: it is said once, on stderr.
func (a *app) logCommands(entries []commandLogEntry) {
	if len(entries) == 0 {
		return
	}
	path, err := a.commandLogPath()
	if err == nil {
		err = appendCommandLog(path, entries)
	}
	if err != nil {
		a.log.Warn("the command log was not written", "error", err)
	}
}

func appendCommandLog(path string, entries []commandLogEntry) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("command log: %w", err)
	}
	f, err := openCommandLog(path)
	if err != nil {
		return fmt.Errorf("command log: %w", err)
	}
	defer func() { _ = f.Close() }() // gives the lock back
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, e := range entries {
		if buf.Len() > maxCommandLog {
			break // a fan-out to a whole fleet that is away: the bound holds
		}
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("command log: %w", err)
		}
	}
	if _, err := f.Write(buf.Bytes()); err != nil {
		return fmt.Errorf("command log: %w", err)
	}
	return nil
}

// openCommandLog opens the log with its lock held, rotated where it is full.
// Another process may rotate it between open and lock, hence the loop.
func openCommandLog(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			_ = f.Close()
			return nil, err
		}
		mine, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		current, err := os.Stat(path)
		switch {
		case err != nil || !os.SameFile(mine, current):
		case mine.Size() < maxCommandLog:
			return f, nil
		default:
			if err := os.Rename(path, path+".1"); err != nil {
				_ = f.Close()
				return nil, err
			}
		}
		_ = f.Close()
	}
}

// lockFile waits for the lock, which others hold for one write: not for ever,
// because a stopped process (Ctrl-Z) may hold it.
func lockFile(f *os.File) error {
	for tries := 0; ; tries++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || tries == 50 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

// keptDesired is a desired state as it was read from the bucket, and as it is
// kept in the state directory: one line of JSON, which is this struct, then the
// document itself.
type keptDesired struct {
	Schema   int       `json:"schema"`
	DeviceID string    `json:"device_id"`
	Revision uint64    `json:"revision"`
	Stored   time.Time `json:"stored"` // by the broker
	Deleted  bool      `json:"deleted,omitempty"`
	SHA256   string    `json:"sha256"` // of the document

	document []byte
}

// newerThan tells whether k replaces what was read before. A bucket that was made
// anew counts from 1 again: then the time tells. A read from a replica that lags
// behind has neither.
func (k keptDesired) newerThan(old keptDesired) bool {
	return k.Revision > old.Revision || k.Stored.After(old.Stored)
}

// decode gives the document; that of a delete marker desires nothing.
func (k keptDesired) decode() (command.DesiredState, error) {
	if k.Deleted {
		return command.DesiredState{Schema: command.Schema}, nil
	}
	return command.DecodeDocument[command.DesiredState](k.document)
}

// encode makes the file.
func (k keptDesired) encode() ([]byte, error) {
	sum := sha256.Sum256(k.document)
	k.Schema, k.SHA256 = command.Schema, hex.EncodeToString(sum[:])
	head, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	return append(append(head, '\n'), k.document...), nil
}

// decodeKept reads the file of a device.
func decodeKept(data []byte, device string) (keptDesired, error) {
	head, document, found := bytes.Cut(data, []byte{'\n'})
	if !found {
		return keptDesired{}, errors.New("it has no first line")
	}
	var k keptDesired
	if err := json.Unmarshal(head, &k); err != nil {
		return keptDesired{}, fmt.Errorf("its first line: %w", err)
	}
	sum := sha256.Sum256(document)
	switch {
	case k.Schema != command.Schema:
		return keptDesired{}, fmt.Errorf("it has schema %d, this version reads %d", k.Schema, command.Schema)
	case k.SHA256 != hex.EncodeToString(sum[:]):
		return keptDesired{}, errors.New("its checksum is wrong")
	case k.DeviceID != device:
		return keptDesired{}, fmt.Errorf("it is of device %.80q", k.DeviceID)
	}
	k.document = document
	if _, err := k.decode(); err != nil {
		return keptDesired{}, err
	}
	return k, nil
}

// keepDesired stores k; without a state directory it does nothing.
func (d *stateDir) keepDesired(k keptDesired) error {
	if d.path == "" {
		return nil
	}
	data, err := k.encode()
	if err != nil {
		return err
	}
	return atomicfile.Write(d.file(desiredFile), data)
}

// loadDesired gives what the last run kept; found is false where it kept nothing.
// A file that cannot be read is set aside, and reported by damage: what runs goes
// on until the broker tells what is desired.
func (d *stateDir) loadDesired(device string) (k keptDesired, found bool, damage string, err error) {
	if d.path == "" {
		return k, false, "", nil
	}
	name := d.file(desiredFile)
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return k, false, "", nil
	case err != nil:
		return k, false, "", fmt.Errorf("state_dir: %w", err)
	}
	k, why := decodeKept(data, device)
	if why == nil {
		return k, true, "", nil
	}
	if err := os.Rename(name, name+".damaged"); err != nil {
		return k, false, "", fmt.Errorf("state_dir: %w", err)
	}
	return k, false, fmt.Sprintf("%s was set aside as %[1]s.damaged: %v", name, why), nil
}

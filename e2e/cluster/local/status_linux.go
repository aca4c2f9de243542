package local

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

// status is what a supervisor writes down about itself.
type status struct {
	PID     int          `json:"pid"` // as the machine sees it
	Name    string       `json:"name"`
	Network netip.Prefix `json:"network"`
	Started time.Time    `json:"started"`
}

func statusPath(l layout) string     { return l.path("supervisor.json") }
func componentsPath(l layout) string { return l.path("components.json") }

func writeStatus(l layout, s status) error { return writeJSON(statusPath(l), s) }

func writeComponents(l layout, list []ComponentStatus) error {
	slices.SortFunc(list, func(a, b ComponentStatus) int { return cmp.Compare(a.Name, b.Name) })
	return writeJSON(componentsPath(l), list)
}

// readStatus returns fs.ErrNotExist where there is no status.
func readStatus(l layout) (s status, err error) {
	return s, readJSON(statusPath(l), &s)
}

// readComponents returns nil where none was ever started.
func readComponents(l layout) []ComponentStatus {
	var list []ComponentStatus
	_ = readJSON(componentsPath(l), &list) // nil says it
	return list
}

// writeJSON replaces the file at once: a reader sees the old content or the new.
func writeJSON(path string, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := atomicfile.Write(path, content); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func readJSON(path string, v any) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(content, v); err != nil {
		return fmt.Errorf("read state %s: %w", path, err)
	}
	return nil
}

package tomlconfig

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
)

// Log is what a configuration says of a program's log. The zero value is level
// info as text.
type Log struct {
	Level  string `toml:"level"`  // debug, info (default), warn or error
	Format string `toml:"format"` // text (default) or json
}

// CheckLevel refuses a level that is not one of the four. Empty is one.
func (l Log) CheckLevel() error { return oneOf(l.Level, "debug", "info", "warn", "error") }

// CheckFormat refuses a format that is not one of the two. Empty is one.
func (l Log) CheckFormat() error { return oneOf(l.Format, "text", "json") }

func oneOf(value string, known ...string) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	last := len(known) - 1
	return fmt.Errorf("%q is not %s or %s", value, strings.Join(known[:last], ", "), known[last])
}

// New makes the logger that writes to w. A level or format that the checks
// refuse is taken as the default.
func (l Log) New(w io.Writer) *slog.Logger {
	var level slog.Level                     // info
	_ = level.UnmarshalText([]byte(l.Level)) // on error it stays info
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

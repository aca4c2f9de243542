package stack

import (
	"context"
	"log/slog"
	"strings"
)

// quiet makes debug records of lines that say nothing to whoever runs a whole
// system on one machine: that its passwords, made up for this run and held in
// memory, are not hashed; and each refusal of a login, of which the callout gives
// the reason (its own probes are refused on purpose).
type quiet struct{ slog.Handler }

var noise = []string{"Plaintext passwords detected", "authentication error", "Auth callout service returned an error"}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	for _, n := range noise {
		if strings.Contains(r.Message, n) {
			if !q.Enabled(ctx, slog.LevelDebug) {
				return nil
			}
			r.Level = slog.LevelDebug
		}
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

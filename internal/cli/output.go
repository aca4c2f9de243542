package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// result is how a command to one device ended, as -o json prints it.
type result struct {
	DeviceID string          `json:"device_id,omitempty"`
	Outcome  command.Outcome `json:"outcome"`
	RTT      *int64          `json:"rtt_us,omitempty"` // microseconds
	Reply    any             `json:"reply,omitempty"`
	Message  string          `json:"message,omitempty"`

	NotStarted bool `json:"not_started,omitempty"` // stopped or aborted before its turn
}

// exitBrokenPipe is what a shell says of a program that SIGPIPE ended: 128 and
// the number of the signal.
const exitBrokenPipe = 128 + int(syscall.SIGPIPE)

// pipeWriter remembers that nobody reads stdout any more, as after `| head -1`,
// which is no fault of this program.
type pipeWriter struct {
	io.Writer
	broken atomic.Bool
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		w.broken.Store(true)
	}
	return n, err
}

// writeJSON prints v as one line on stdout.
func (a *app) writeJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// table writes rows under a head in aligned columns.
func (a *app) table(head []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = command.Printable(row[i])
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// oneLine folds what may be several lines into one.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return command.Printable(strings.Join(parts, "; "))
}

// age prints a duration at the precision that a person wants.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// rtt prints a round trip: 412µs, 1.73ms, 2.5s.
func rtt(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

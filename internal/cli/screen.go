package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/harmony-fleet/fleet/command"
)

// screen writes the lines of many devices, each as a whole, and keeps a progress
// bar below them where stderr is a terminal.
type screen struct {
	mu      sync.Mutex
	stdout  io.Writer
	stderr  io.Writer
	outTint bool // colours on stdout
	errTint bool
	width   int // of the device column

	bar    func() string // what the bar says now; nil: there is none
	cols   func() int
	shown  bool
	dirty  bool
	stop   chan struct{} // closed by close
	ticker sync.WaitGroup
}

// newScreen makes a screen for devices. bar gives the text of the progress bar,
// and is called with the screen locked.
func (a *app) newScreen(devices []string, bar func() string) *screen {
	s := &screen{stdout: a.stdout, stderr: a.stderr, stop: make(chan struct{})}
	for _, d := range devices {
		s.width = max(s.width, min(len(d), command.MaxDeviceID))
	}
	plain := a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb"
	_, out := terminalOf(a.stdout)
	file, err := terminalOf(a.stderr)
	s.outTint, s.errTint = out && !plain, err && !plain
	if !err || a.getenv("TERM") == "dumb" || a.json() {
		return s
	}
	s.bar = bar
	s.cols = func() int {
		cols, _, err := term.GetSize(int(file.Fd()))
		if err != nil || cols <= 0 {
			return 80
		}
		return cols
	}
	s.ticker.Go(s.tick)
	return s
}

// terminalOf tells whether what is written to w is seen on a terminal.
func terminalOf(w io.Writer) (*os.File, bool) {
	if p, ok := w.(*pipeWriter); ok {
		w = p.Writer
	}
	f, ok := w.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// barInterval is how often the bar is drawn again, at most.
const barInterval = 200 * time.Millisecond

func (s *screen) tick() {
	t := time.NewTicker(barInterval)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.mu.Lock()
			if s.dirty {
				s.draw()
			}
			s.mu.Unlock()
		}
	}
}

// draw puts the bar on the last line; s.mu is held.
func (s *screen) draw() {
	text := []rune(s.bar())
	if most := s.cols() - 1; len(text) > most {
		text = text[:max(0, most)]
	}
	fmt.Fprint(s.stderr, "\r\x1b[K"+string(text))
	s.shown, s.dirty = true, false
}

func (s *screen) clear() {
	if s.shown {
		fmt.Fprint(s.stderr, "\r\x1b[K")
		s.shown = false
	}
	s.dirty = true
}

// changed has the bar drawn again soon.
func (s *screen) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = true
}

// say writes one line of fleet's own to stderr.
func (s *screen) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintln(s.stderr, "fleet: "+line)
}

// line writes a line of a device's output behind its id.
func (s *screen) line(device string, stream command.Stream, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, tint, colour := s.stdout, s.outTint, "\x1b[36m" // cyan
	if stream == command.StreamStderr {
		w, tint, colour = s.stderr, s.errTint, "\x1b[33m" // yellow
	}
	head := fmt.Sprintf("%-*s |", s.width, device)
	if tint {
		head = colour + head + "\x1b[0m"
	}
	if text != "" {
		head += " "
	}
	s.clear()
	_, err := fmt.Fprintln(w, head+printableLine(text))
	return err
}

// close takes the bar away.
func (s *screen) close() {
	close(s.stop)
	s.ticker.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

// printableLine is [command.Printable] that leaves tabs: they move the cursor
// and nothing else.
func printableLine(s string) string {
	parts := strings.Split(strings.TrimSuffix(s, "\r"), "\t")
	for i := range parts {
		parts[i] = command.Printable(parts[i])
	}
	return strings.Join(parts, "\t")
}

// maxScreenLine is where a line without an end is cut, in bytes.
const maxScreenLine = 16 << 10

// deviceLines cuts a stream of a device into lines.
type deviceLines struct {
	screen *screen
	device string
	stream command.Stream
	rest   []byte
}

func (d *deviceLines) Write(p []byte) (int, error) {
	for i := 0; i < len(p); {
		end := i
		for end < len(p) && p[end] != '\n' && len(d.rest)+end-i < maxScreenLine {
			end++
		}
		d.rest = append(d.rest, p[i:end]...)
		i = end
		switch {
		case end == len(p) && len(d.rest) < maxScreenLine:
			return len(p), nil
		case end < len(p) && p[end] == '\n':
			i++
		}
		if err := d.print(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (d *deviceLines) print() error {
	err := d.screen.line(d.device, d.stream, string(d.rest))
	d.rest = d.rest[:0]
	return err
}

// flush ends a last line that has no end.
func (d *deviceLines) flush() error {
	if len(d.rest) == 0 {
		return nil
	}
	return d.print()
}

// progressBar is as in "[=====>      ] 12/40  10 ok, 2 exit 1  8 run".
func progressBar(done, total, running int, parts []string) string {
	const width = 24
	filled := 0
	if total > 0 {
		filled = width * done / total
	}
	bar := strings.Repeat("=", filled)
	if filled < width {
		bar += ">" + strings.Repeat(" ", width-filled-1)
	}
	text := fmt.Sprintf("[%s] %d/%d", bar, done, total)
	if len(parts) > 0 {
		text += "  " + strings.Join(parts, ", ")
	}
	if running > 0 {
		text += fmt.Sprintf("  %d under way", running)
	}
	return text
}

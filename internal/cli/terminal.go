package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/term"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// errLeft is the cause of a context that ended by the escape.
var errLeft = errors.New("left by the escape")

// terminal is the user's terminal in raw mode: what is typed goes to the other
// side as it is.
type terminal struct {
	file    *os.File
	ctx     context.Context // ends with the command, and by the escape
	cancel  context.CancelCauseFunc
	resizes chan command.Resize
	restore func() // puts the terminal back; may be called more than once
}

// openTerminal puts standard input, which must be a terminal, into raw mode.
func (a *app) openTerminal(ctx context.Context) (*terminal, error) {
	fd := int(a.stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil, rejected("standard input is not a terminal; for a pipe use fleet exec -i")
	}
	t := &terminal{file: a.stdin, resizes: make(chan command.Resize, 1)}
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	state, err := term.MakeRaw(fd)
	if err != nil {
		t.cancel(nil)
		return nil, rejected("the terminal cannot be put into raw mode: %v", err)
	}
	stopWatching := t.watchSize()
	t.restore = sync.OnceFunc(func() {
		stopWatching()
		t.cancel(nil)
		_ = term.Restore(fd, state) // what could be done about it?
	})
	return t, nil
}

// ended is the end of a program that was connected to the terminal.
func (t *terminal) ended(r client.ExecResult, err error) error {
	if errors.Is(context.Cause(t.ctx), errLeft) {
		return exitError{code: ownFailure, summary: "left; what was started in the terminal is ended"}
	}
	return programEnded(r, err)
}

// size is the terminal's now; that of a classic one where it cannot be told.
func (t *terminal) size() *command.Resize {
	cols, rows, err := term.GetSize(int(t.file.Fd()))
	if err != nil || rows <= 0 || cols <= 0 {
		return &command.Resize{Rows: 24, Cols: 80}
	}
	return &command.Resize{Rows: uint16(min(rows, 1<<16-1)), Cols: uint16(min(cols, 1<<16-1))}
}

// resized passes the size on; of several that wait only the last counts.
func (t *terminal) resized() {
	for {
		select {
		case t.resizes <- *t.size():
			return
		default:
		}
		select {
		case <-t.resizes:
		default:
		}
	}
}

// input is what is typed, without the escape, which ends the context.
func (t *terminal) input() io.Reader {
	return &escapes{r: t.file, leave: func() { t.cancel(errLeft) }}
}

// escapes takes ~. at the beginning of a line out of what is typed, and ~~ for
// one ~, as ssh does.
type escapes struct {
	r     io.Reader
	leave func()

	midLine bool // the last byte was no end of a line
	tilde   bool // a ~ at the beginning of a line was held back
}

func (e *escapes) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return 0, io.ErrShortBuffer // a ~ that was held back needs room
	}
	for {
		buf := make([]byte, len(p)-1)
		n, err := e.r.Read(buf)
		out := 0
		for _, b := range buf[:n] {
			if e.tilde {
				e.tilde = false
				switch b {
				case '.':
					e.leave()
					return out, io.EOF
				case '~':
				default:
					p[out] = '~'
					out++
				}
				e.midLine = true
			} else if b == '~' && !e.midLine {
				e.tilde = true
				continue
			}
			p[out] = b
			out++
			e.midLine = b != '\r' && b != '\n'
		}
		if out > 0 || err != nil {
			return out, err
		}
	}
}

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const patience = 20 * time.Second

// binary is the real program, built once and only if a test asks for it: the
// processes of a fuzz run do not.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fleet-test-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	args := []string{"build", "-o", filepath.Join(dir, "fleet")}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "github.com/harmony-fleet/fleet/cmd/fleet")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fleet: %w\n%s", err, out)
	}
	return filepath.Join(dir, "fleet"), nil
})

var binaryDir string

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the issuer's provider library logs there
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if binaryDir != "" {
			_ = os.RemoveAll(binaryDir)
		}
		os.Exit(code)
	}))
}

// home is a user of his own: nothing of this machine's configuration is seen.
type home struct {
	t    *testing.T
	dir  string
	env  []string
	temp string // where `fleet up` puts its temporary directory
}

func newHome(t *testing.T) *home {
	t.Helper()
	if _, err := binary(); err != nil { // now, not in the time of the first command
		t.Fatal(err)
	}
	h := &home{t: t, dir: t.TempDir()}
	h.temp = filepath.Join(h.dir, "tmp")
	if err := os.Mkdir(h.temp, 0o700); err != nil {
		t.Fatal(err)
	}
	h.env = []string{
		"HOME=" + h.dir, "TMPDIR=" + h.temp, "PATH=" + os.Getenv("PATH"),
		"GORACE=atexit_sleep_ms=0", // the race detector's pause of a second at each exit
		"XDG_CONFIG_HOME=" + filepath.Join(h.dir, "config"), "XDG_STATE_HOME=" + filepath.Join(h.dir, "state"),
	}
	return h
}

func (h *home) contextFile() string {
	return filepath.Join(h.dir, "config", "harmony-fleet", "context.toml")
}

func (h *home) commandLog() string {
	return filepath.Join(h.dir, "state", "harmony-fleet", "commands.log")
}

// leftovers is what is in the home beside the command log.
func (h *home) leftovers() (left []string) {
	h.t.Helper()
	err := filepath.WalkDir(h.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && path != h.commandLog() {
			left = append(left, path)
		}
		if err == nil && e.IsDir() && filepath.Dir(path) == h.temp {
			left = append(left, path)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return left
}

func (h *home) command(ctx context.Context, args ...string) *exec.Cmd {
	h.t.Helper()
	path, err := binary()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = h.env
	return cmd
}

// outputOf is a finished command.
type outputOf struct {
	stdout, stderr string
	code           int
}

func (o outputOf) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", o.code, o.stdout, o.stderr)
}

// fleet runs one command to its end.
func (h *home) fleet(args ...string) outputOf {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	if ctx.Err() != nil {
		h.t.Fatalf("fleet %v did not end\nstdout: %s\nstderr: %s", args, &stdout, &stderr)
	}
	o := outputOf{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	for _, bad := range []string{"goroutine ", "panic:", "DATA RACE"} {
		if strings.Contains(o.stderr, bad) {
			h.t.Errorf("fleet %v: %s", args, o)
		}
	}
	return o
}

// process is a command that goes on.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr syncbuf.Buffer
	ended          chan struct{}
}

// start runs a command until the test ends or somebody ends it.
func (h *home) start(args ...string) *process {
	h.t.Helper()
	p := &process{t: h.t, cmd: h.command(context.Background(), args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	h.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// says waits until stdout holds text.
func (p *process) says(text string) {
	p.t.Helper()
	testwait.For(p.t, patience, fmt.Sprintf("%q on stdout", text), func() bool {
		select {
		case <-p.ended:
			if !strings.Contains(p.stdout.String(), text) {
				p.t.Fatalf("ended without %q: exit code %d\nstdout: %s\nstderr: %s", text, p.cmd.ProcessState.ExitCode(), &p.stdout, &p.stderr)
			}
		default:
		}
		return strings.Contains(p.stdout.String(), text)
	})
}

// interrupt is Ctrl-C: it returns the exit code and how long the end took.
func (p *process) interrupt() (code int, took time.Duration) {
	p.t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("Ctrl-C did not end it\nstdout: %s\nstderr: %s", &p.stdout, &p.stderr)
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(begin)
}

// up starts `fleet up` on a free port and waits until it is up.
func (h *home) up(args ...string) *process {
	h.t.Helper()
	p := h.start(append([]string{"up", "--port", "0", "--runtime", "off"}, args...)...)
	p.says("[fleet] up;")
	return p
}

// line is what follows a label in the lines of `fleet up`.
func (p *process) line(label string) string {
	p.t.Helper()
	for line := range strings.Lines(p.stdout.String()) {
		if value, ok := strings.CutPrefix(line, "[fleet] "+label+": "); ok {
			value, _, _ = strings.Cut(value, "  ")
			return strings.TrimSpace(value)
		}
	}
	p.t.Fatalf("no line %q in %s", label, &p.stdout)
	return ""
}

func inEachMode(t *testing.T, test func(t *testing.T, auth string)) {
	for _, auth := range []string{"callout", "userpass"} {
		t.Run(auth, func(t *testing.T) { test(t, auth) })
	}
}

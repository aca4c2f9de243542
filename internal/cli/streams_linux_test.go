package cli

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/pty"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// streaming is a fleet of one device with a real Podman and a container
// hello/web.
func streaming(t *testing.T) *home {
	t.Helper()
	p := hostpodman.Start(t)
	p.Service(t, "vm-device-00", "hello", "web", "sh", "-c", "echo one; sleep 0.2; echo oops >&2; sleep 0.2; echo two; exec sleep 1000000")
	h := newHome(t)
	h.up("--devices", "1", "--runtime", p.Socket)
	testwait.For(t, patience, "the device's status", func() bool { return h.fleet("exec", "vm-device-00", "--container", "web", "--", "true").code == 0 })
	testwait.For(t, patience, "the container's output", func() bool { return h.fleet("logs", "vm-device-00", "web").stdout == "one\ntwo\n" })
	return h
}

func TestStreamsFromTheCommandLine(t *testing.T) {
	h := streaming(t)
	for _, c := range []struct {
		args        []string
		code        int
		out, errors string
	}{
		{[]string{"logs", "vm-device-00", "web"}, 0, "one\ntwo\n", "oops\n"},
		{[]string{"logs", "vm-device-00", "hello/web", "--tail", "0"}, 0, "", ""},
		{[]string{"logs", "vm-device-00", "web", "-o", "json", "--tail", "1"}, 0, `{"device_id":"vm-device-00","stream":"stdout","line":"two"}` + "\n", ""},
		{[]string{"logs", "vm-device-00", "nope"}, 1, "", `fleet: logs vm-device-00: failed: no container "nope" on this device; it has hello/web` + "\n"},
		{[]string{"logs", "vm-device-00", "web", "--since", "yesterday"}, 2, "", `fleet: rejected: --since "yesterday" is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 10m` + "\n"},
		{[]string{"exec", "vm-device-00", "--container", "web", "--", "sh", "-c", "echo a; echo b >&2; exit 7"}, 7, "a\n", "b\n"},
		{[]string{"exec", "vm-device-00", "--container", "web", "--env", "A=x y", "--", "sh", "-c", "echo $A"}, 0, "x y\n", ""},
		{[]string{"exec", "vm-device-00", "--host", "--", "id"}, 255, "", "fleet: exec vm-device-00: denied: the policy of this device does not allow exec on the host, only in containers\n"},
		{[]string{"exec", "vm-device-99", "--container", "web", "--", "id"}, 255, "", "fleet: exec vm-device-99: unknown_device: nobody listens there, and no device of that id has ever reported; check the id\n"},
		{[]string{"exec", "vm-device-00", "--", "seq", "2"}, 0, "1\n2\n", ""},
		{[]string{"exec", "vm-device-00", "--host", "--container", "web", "--", "id"}, 255, "", "fleet: --container and --host: say one of them; see fleet exec --help\n"},
		{[]string{"shell", "vm-device-00", "--container", "web"}, 255, "", "fleet: rejected: standard input is not a terminal; for a pipe use fleet exec -i\n"},
		{[]string{"logs", "vm-device-00"}, 0, "one\ntwo\n", "oops\n"},
		{[]string{"logs"}, 2, "", "fleet: say a DEVICE and, if it has several, one CONTAINER: fleet logs DEVICE CONTAINER; see fleet logs --help\n"},
		{[]string{"exec", "vm-device-00"}, 255, "", "fleet: say on which device, and behind -- what to run: fleet exec DEVICE -- PROGRAM [ARG...]; see fleet exec --help\n"},
		{[]string{"exec", "--nope"}, 255, "", "fleet: unknown flag: --nope; see fleet exec --help\n"},
		{[]string{"exec", "vm-device-00", "--as-user", "nosuch", "--", "id"}, 255, "", "fleet: exec vm-device-00: failed: the container engine did not start the program; is there such a user in the container hello/web? The agent's log says what the engine said\n"},
		{[]string{"shell"}, 255, "", "fleet: say on which device: fleet shell DEVICE; see fleet shell --help\n"},
		{[]string{"result", "vm-device-00"}, 2, "", "fleet: say a DEVICE and the id of one request, which fleet told when the connection was lost; see fleet result --help\n"},
		{[]string{"result", "vm-device-00", "x"}, 2, "", `fleet: rejected: request id "x": want a lower-case UUID such as 01890a5d-ac96-774b-bcce-b302099a8057` + "\n"},
	} {
		o := h.fleet(c.args...)
		if o.code != c.code || o.stdout != c.out || o.stderr != c.errors {
			t.Errorf("%v: %s", c.args, o)
		}
	}
	cmd := h.command(t.Context(), "exec", "vm-device-00", "--container", "web", "-i", "--", "cat")
	blob := bytes.Repeat([]byte("0123456789abcdef\x00\xff"), 1<<16)
	cmd.Stdin = bytes.NewReader(blob)
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, blob) {
		t.Errorf("%d bytes through cat came back as %d: %v", len(blob), len(out), err)
	}
	// Ctrl-C goes to the program.
	p := h.start("exec", "vm-device-00", "--container", "web", "--", "sh", "-c", "trap 'exit 9' INT; echo ready; while :; do sleep 0.01; done")
	p.says("ready")
	_ = p.cmd.Process.Signal(os.Interrupt)
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("after Ctrl-C: exit code %d; %s", code, &p.stderr)
	}
}

// seat is a person at a pseudo-terminal in which fleet shell runs.
type seat struct {
	t      *testing.T
	master *os.File
	slave  *os.File
	cmd    *exec.Cmd
	ended  chan struct{}
	before unix.Termios

	mu     sync.Mutex
	screen bytes.Buffer
}

func (h *home) sit(args ...string) *seat {
	t := h.t
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &seat{t: t, master: master, slave: slave, ended: make(chan struct{})}
	if err := pty.SetSize(master, 30, 90); err != nil {
		t.Fatal(err)
	}
	s.before = s.mode()
	s.cmd = h.command(t.Context(), args...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	s.cmd.Env = append(s.cmd.Env, "TERM=xterm-test")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait()
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.screen.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		slave.Close()
		master.Close()
		<-read
	})
	return s
}

func (s *seat) mode() unix.Termios {
	s.t.Helper()
	mode, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *mode
}

func (s *seat) types(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.master, text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *seat) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.String()
}

func (s *seat) shows(text string) {
	s.t.Helper()
	testwait.For(s.t, patience, "the screen to show "+text, func() bool { return strings.Contains(s.text(), text) })
}

// leaves waits for the end, and that the terminal is as it was.
func (s *seat) leaves(code int) {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatalf("fleet shell does not end; the screen shows %q", s.text())
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d; the screen shows %q", got, code, s.text())
	}
	if s.mode() != s.before {
		s.t.Errorf("the terminal was left in another mode")
	}
}

func TestShellInATerminal(t *testing.T) {
	h := streaming(t)
	open := func(t *testing.T) *seat {
		t.Helper()
		here := *h
		here.t = t
		s := here.sit("shell", "vm-device-00", "--container", "web")
		s.types("echo $((40+2))-$TERM; stty size\r")
		s.shows("42-xterm-test")
		s.shows("30 90")
		if s.mode() == s.before {
			t.Error("the terminal is not in raw mode")
		}
		return s
	}
	t.Run("exit", func(t *testing.T) {
		s := open(t)
		if err := pty.SetSize(s.master, 41, 123); err != nil {
			t.Fatal(err)
		}
		last := time.Time{}
		testwait.For(t, patience, "the new size", func() bool {
			if time.Since(last) > 200*time.Millisecond {
				last = time.Now()
				s.types("stty size\r")
			}
			return strings.Contains(s.text(), "41 123")
		})
		s.types("sleep 3456789\r")
		testwait.For(t, patience, "the program in the terminal", func() bool { return hostpodman.Running("3456789") })
		s.types("\x03") // Ctrl-C is the remote's
		s.types("echo still-$((1+1))\r")
		s.shows("still-2")
		s.types("exit 3\r")
		s.leaves(3)
	})
	t.Run("escape", func(t *testing.T) {
		s := open(t)
		s.types("echo no ~. here\r")
		s.shows("no ~. here")
		s.types("~~\r")
		s.types("\r~.")
		s.leaves(255)
	})
	t.Run("terminated", func(t *testing.T) {
		s := open(t)
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		s.leaves(255)
	})
	t.Run("refused", func(t *testing.T) {
		here := *h
		here.t = t
		s := here.sit("shell", "vm-device-00", "--container", "nope")
		s.shows("no container")
		s.leaves(255)
	})
	t.Run("exec with a terminal", func(t *testing.T) {
		here := *h
		here.t = t
		s := here.sit("exec", "vm-device-00", "--container", "web", "-i", "-t", "--", "sh", "-c", "tty; read x; echo got-$x; exit 4")
		s.shows("/dev/pts/")
		s.types("hello\r")
		s.shows("got-hello")
		s.leaves(4)
	})
}

func TestEscapes(t *testing.T) {
	for name, c := range map[string]struct {
		in, out string
		left    bool
	}{
		"nothing":               {"ls\r", "ls\r", false},
		"at the beginning":      {"~.", "", true},
		"after a line":          {"ls\r~.rest", "ls\r", true},
		"within a line":         {"a~.\r", "a~.\r", false},
		"two tildes are one":    {"~~.\r", "~.\r", false},
		"a tilde and any other": {"~x\r~\r", "~x\r~\r", false},
	} {
		for _, size := range []int{2, 3, 64} {
			left := false
			e := &escapes{r: iotestOneByte{strings.NewReader(c.in)}, leave: func() { left = true }}
			var out []byte
			buf := make([]byte, size)
			for {
				n, err := e.Read(buf)
				out = append(out, buf[:n]...)
				if err != nil {
					break
				}
			}
			if string(out) != c.out || left != c.left {
				t.Errorf("%s, %d bytes at a time: %q, left %t", name, size, out, left)
			}
		}
	}
}

// iotestOneByte reads a byte at a time, as a person types.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

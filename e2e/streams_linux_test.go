package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/hostpodman"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// TestStreamsOfADeviceOfThisMachine: logs, exec and shell through the cluster's edge,
// TLS and the accounts of both ways to sign in, to a real container.
func TestStreamsOfADeviceOfThisMachine(t *testing.T) {
	inEachModeInTurn(t, func(t *testing.T, mode AuthMode) {
		Require(t)
		podman := hostpodman.Start(t)
		s := New(t, Options{AuthMode: mode, AgentTarget: Host{RuntimeSocket: podman.Socket}})
		device, c := s.DeviceIDs[0], s.Client()
		podman.Service(t, device, "hello", "web", "sh", "-c", "echo out; echo err >&2; exec sleep 1000000")

		testwait.For(t, patience, "the container's logs", func() bool {
			var out, errs bytes.Buffer
			err := c.Logs(t.Context(), device, client.LogsOptions{Container: "web", Stdout: &out, Stderr: &errs})
			var e *command.Error
			if errors.As(err, &e) && (e.Kind == command.KindNotFound || e.Kind == command.KindRuntimeUnavailable) {
				return false // the agent has not found the engine yet
			}
			if err != nil {
				t.Fatal(err)
			}
			return out.String() == "out\n" && errs.String() == "err\n"
		})

		in := make([]byte, 3<<20) // several windows
		rand.Read(in)
		var out bytes.Buffer
		result, err := c.Exec(t.Context(), device, client.ExecOptions{
			Container: "web", Argv: []string{"sh", "-c", "cat; exit 7"}, Stdin: bytes.NewReader(in), Stdout: &out,
		})
		if err != nil || result.ExitCode != 7 || !bytes.Equal(out.Bytes(), in) {
			t.Errorf("exec: %v, exit code %d, %d bytes of %d, the same: %v", err, result.ExitCode, out.Len(), len(in), bytes.Equal(out.Bytes(), in))
		}
		if told, err := c.Result(t.Context(), device, result.RequestID); err != nil || told.ExitCode == nil || *told.ExitCode != 7 {
			t.Errorf("its outcome, asked for later: %+v, %v", told, err)
		}

		var screen bytes.Buffer
		shell, err := c.Shell(t.Context(), device, client.ShellOptions{
			Container: "web", Stdin: strings.NewReader("echo $((40+2))-$TERM; exit 3\r"), Stdout: &screen, Term: "vt100",
		})
		if err != nil || shell.ExitCode != 3 || !strings.Contains(screen.String(), "42-vt100") {
			t.Errorf("shell: %v, exit code %d, on the screen: %q", err, shell.ExitCode, screen.String())
		}
	})
}

//go:build linux

package podmantest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/internal/childproc"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
)

// process is a command that runs until it is killed, or the test is.
type process struct {
	*childproc.Process
	output *syncbuf.Buffer
}

func run(cmd *exec.Cmd) (*process, error) {
	output := &syncbuf.Buffer{}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = time.Second // containers keep the pipes
	p, err := childproc.Start(cmd)
	if err != nil {
		return nil, err
	}
	return &process{p, output}, nil
}

func (p *process) over() bool {
	select {
	case <-p.Ended():
		return true
	default:
		return false
	}
}

func (p *process) says(text string) error {
	for deadline := time.Now().Add(patience); !strings.Contains(p.output.String(), text); {
		if p.over() || time.Now().After(deadline) {
			return fmt.Errorf("%s: %s", p.Cmd, p.output)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// Layer is a tar archive with /probe, and the directories that a container needs.
var Layer = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "github.com/harmony-fleet/fleet/internal/podmantest/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}); err != nil {
		return nil, err
	}
	if err := w.WriteHeader(&tar.Header{Name: "probe", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	return layer.Bytes(), w.Close()
})

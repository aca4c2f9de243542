package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/childproc"
	"github.com/harmony-fleet/fleet/internal/credentials"
)

// Host runs each agent as a process on this machine, as a device would: with its
// container engine, and reaching NATS from outside of the cluster.
type Host struct {
	// RuntimeSocket is the container engine of the agents, for example
	// "unix:///run/podman/podman.sock". Empty: they run no containers.
	RuntimeSocket string
}

func (Host) programs() []image.Program { return nil }

// hostStopTimeout is how long an agent has to end by itself. Its configuration has
// it give up what it is doing earlier.
const hostStopTimeout = 800 * time.Millisecond

// hostAgent is an agent's process.
type hostAgent struct {
	device string
	log    string // path
	*childproc.Process
}

var hostBinary struct {
	sync.Mutex
	path string
}

func (Host) early() bool { return false }

func (h Host) start(ctx context.Context, s *Stack, devices []string) error {
	binary, err := h.build(ctx)
	if err != nil {
		return err
	}
	var list []func() error
	for _, device := range devices {
		list = append(list, func() error { return h.startOne(ctx, s, binary, device) })
	}
	return together(list...)
}

func (h Host) startOne(ctx context.Context, s *Stack, binary, device string) error {
	dir := filepath.Join(s.dir, device)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("agent %s: %w", device, err)
	}
	login, files, err := h.login(ctx, s, device, dir)
	if err != nil {
		return fmt.Errorf("agent %s: %w", device, err)
	}
	var engine map[string]any
	if h.RuntimeSocket != "" {
		engine = map[string]any{"socket": h.RuntimeSocket}
	}
	config, err := s.agentFiles(device, dir, filepath.Join(dir, "state"), s.NATSURL, engine, login)
	if err != nil {
		return err
	}
	for name, content := range config {
		files[name] = content
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("agent %s: %w", device, err)
		}
	}
	a := &hostAgent{device: device, log: filepath.Join(dir, "agent.log")}
	out, err := os.Create(a.log)
	if err != nil {
		return fmt.Errorf("agent %s: %w", device, err)
	}
	defer out.Close()
	cmd := exec.Command(binary, "--config", filepath.Join(dir, "fleet-agent.toml"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	// Ctrl-C reaches this process only, which stops the agent then.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return errors.New("the stack is being closed")
	}
	if a.Process, err = childproc.Start(cmd); err != nil {
		return fmt.Errorf("agent %s: %w", device, err)
	}
	s.wg.Go(func() { <-a.Ended() })
	s.agents = append(s.agents, a)
	return nil
}

// login is the [credentials] table of the device, and the files it names.
func (Host) login(ctx context.Context, s *Stack, device, dir string) (map[string]any, map[string][]byte, error) {
	switch {
	case s.identity == nil:
		return s.sharedLogin(), map[string][]byte{}, nil
	case s.identity.deviceToken != nil:
		token, err := s.identity.deviceToken(device)
		return map[string]any{"type": credentials.TypeTokenFile, "token_file": filepath.Join(dir, "token")}, map[string][]byte{"token": []byte(token)}, err
	}
	key, err := s.identity.deviceKey(ctx, device)
	login := map[string]any{
		"type": credentials.TypeZitadelKey, "issuer": s.identity.url, "project_id": s.identity.projectID, "key_file": filepath.Join(dir, "key.json"),
	}
	files := map[string][]byte{"key.json": key}
	if s.identity.ca != nil {
		login["ca_file"] = filepath.Join(dir, "issuer-ca.pem")
		files["issuer-ca.pem"] = s.identity.ca
	}
	return login, files, err
}

// build makes the program, once in a process.
func (Host) build(ctx context.Context) (string, error) {
	hostBinary.Lock()
	defer hostBinary.Unlock()
	if hostBinary.path != "" {
		return hostBinary.path, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	unlock, err := lockBuild(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build fleet-agent: %w", err)
	}
	path := filepath.Join(base, "harmony-fleet", "host", "fleet-agent")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", path, programAgent.Package)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fleet-agent: %w:\n%s", err, out)
	}
	hostBinary.path = path
	return path, nil
}

// stop ends the agent: politely, and by force where that takes too long.
func (a *hostAgent) stop() error {
	_ = a.Cmd.Process.Signal(syscall.SIGTERM) // fails where it has ended
	timeout := time.NewTimer(hostStopTimeout)
	defer timeout.Stop()
	select {
	case <-a.Ended():
	case <-timeout.C:
		a.Kill()
		return fmt.Errorf("agent %s did not end within %v and was killed; its log is in the diagnostics", a.device, hostStopTimeout)
	}
	if err := a.Wait(); err != nil {
		return fmt.Errorf("agent %s: %w", a.device, err)
	}
	return nil
}

func (s *Stack) hostAgents() []*hostAgent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*hostAgent(nil), s.agents...)
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// Start is the time from the start of the agent's process until it takes
// commands. It builds the agent first, so it needs the Go toolchain and must run
// inside this module.
var Start = Measurement{"start", measureStart}

func measureStart(ctx context.Context, _ Options, dir string) ([]Result, error) {
	srv, err := startBroker(ctx, dir+"/broker")
	if err != nil {
		return nil, err
	}
	defer srv.Close()
	nc, err := dialOps(srv)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	binary := filepath.Join(dir, "fleet-agent")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "github.com/harmony-fleet/fleet/cmd/fleet-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the agent (run this inside the module): %w\n%s", err, out)
	}
	const id = "started"
	config := fmt.Sprintf(`[agent]
device_id = %q
runtime_enabled = false
state_dir = %q
[nats]
url = %q
[credentials]
type = "shared"
user = "device"
password = %q
`, id, filepath.Join(dir, "state"), srv.ClientURL(), passwords.Device)
	file := filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	var took []time.Duration
	var memory uint64
	for range 9 {
		d, rss, err := startOnce(ctx, nc, binary, file, id)
		if err != nil {
			return nil, err
		}
		took, memory = append(took, d), max(memory, rss)
	}
	info, err := os.Stat(binary)
	if err != nil {
		return nil, err
	}
	p50 := millis(quantile(took, 0.5))
	return []Result{
		{Name: "agent_start", What: "agent process started until it answers a ping, median of 9", Unit: "ms", Value: p50, Target: "< 100 ms", Met: p50 < 100},
		{Name: "agent_rss", What: "resident memory of that agent", Unit: "MiB", Value: float64(memory) / (1 << 20), Target: "< 12 MiB", Met: memory < 12<<20},
		{Name: "agent_binary", What: "stripped binary", Unit: "MB", Value: float64(info.Size()) / 1e6},
	}, nil
}

// startOnce runs the agent until it has answered one ping.
func startOnce(ctx context.Context, nc *nats.Conn, binary, config, id string) (took time.Duration, rss uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--config", config)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // its exit code says that it was interrupted
	}()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		msg, err := nc.RequestWithContext(ctx, command.Subject(id, command.VerbPing), nil)
		switch {
		case err == nil:
			took = time.Since(start)
			pong, err := command.DecodeReply[command.PingReply](msg.Header, msg.Data)
			return took, pong.MemoryRSSBytes, err
		case !errors.Is(err, nats.ErrNoResponders):
			return 0, 0, fmt.Errorf("the agent did not answer: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

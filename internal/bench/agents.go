package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// swarm is a number of real agents in this process.
type swarm struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	ids  []string
}

const devicePrefix = "vm-device-"

func deviceID(i int) string { return fmt.Sprintf("%s%05d", devicePrefix, i) }

// startAgents runs n agents of static users and waits until each takes commands.
// With inProcess their connections use no file descriptors; with stateDir each
// keeps its audit records on disk, as it does in the field.
func startAgents(ctx context.Context, srv *broker.Server, n int, inProcess bool, stateDir string) (*swarm, error) {
	cfg := natsconn.Config{
		URLs:        []string{srv.ClientURL()},
		Credentials: credentials.Static(credentials.Credential{User: broker.UserDevice, Password: passwords.Device}),
	}
	if inProcess {
		cfg.InProcess = srv
	}
	return startAgentsWith(ctx, n, func(int) natsconn.Config { return cfg }, stateDir)
}

// startAgentsWith is startAgents with a way to connect for each.
func startAgentsWith(ctx context.Context, n int, connect func(i int) natsconn.Config, stateDir string) (*swarm, error) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &swarm{stop: stop}
	var agents []*agent.Agent
	for i := range n {
		a, err := agent.New(agent.Options{DeviceID: deviceID(i), NATS: connect(i), StateDir: filepath.Join(stateDir, deviceID(i))})
		if err != nil {
			s.close()
			return nil, err
		}
		s.ids = append(s.ids, deviceID(i))
		agents = append(agents, a)
		s.wg.Go(func() { _ = a.Run(running) }) // ends with nil at close; a fault shows as an agent that is never ready
	}
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	for i, a := range agents {
		select {
		case <-a.Ready():
		case <-ctx.Done():
			s.close()
			return nil, ctx.Err()
		case <-deadline.C:
			s.close()
			return nil, fmt.Errorf("agent %d of %d is not ready after 2 minutes", i, n)
		}
	}
	return s, nil
}

// close ends the agents and waits for them.
func (s *swarm) close() {
	s.stop()
	s.wg.Wait()
}

// closeAll closes connections.
func closeAll(conns []*nats.Conn) {
	for _, nc := range conns {
		nc.Close()
	}
}

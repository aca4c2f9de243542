package bench

import (
	"context"
	"fmt"
	"os/user"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
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
	cfg := connectTo(srv, inProcess)
	return startAgentsWith(ctx, n, func(int) natsconn.Config { return cfg }, stateDir)
}

func connectTo(srv *broker.Server, inProcess bool) natsconn.Config {
	cfg := natsconn.Config{
		URLs:        []string{srv.ClientURL()},
		Credentials: credentials.Static(credentials.Credential{User: broker.UserDevice, Password: passwords.Device}),
	}
	if inProcess {
		cfg.InProcess = srv
	}
	return cfg
}

// startWindow is how many agents sign in at once while they start.
const startWindow = 64

// startAgentsWith is startAgents with a way to connect for each.
func startAgentsWith(ctx context.Context, n int, connect func(i int) natsconn.Config, stateDir string) (*swarm, error) {
	return startAgentsAs(ctx, n, func(i int, o *agent.Options) {
		o.NATS = connect(i)
		if stateDir != "" {
			o.StateDir = filepath.Join(stateDir, deviceID(i))
		}
	})
}

// startHosts is startAgents with agents that run real programs, on this machine as
// this user.
func startHosts(ctx context.Context, srv *broker.Server, n int, inProcess bool, stateDir string) (*swarm, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	cfg := connectTo(srv, inProcess)
	return startAgentsAs(ctx, n, func(i int, o *agent.Options) {
		o.NATS, o.StateDir, o.Handlers = cfg, filepath.Join(stateDir, deviceID(i)), nil
		o.Policy = workload.Policy{Host: true, HostUser: me.Username}
	})
}

// startAgentsAs is startAgents with further options for each.
func startAgentsAs(ctx context.Context, n int, set func(i int, o *agent.Options)) (*swarm, error) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &swarm{stop: stop}
	var agents []*agent.Agent
	deadline := time.NewTimer(5 * time.Minute)
	defer deadline.Stop()
	ready := func(i int) (err error) {
		select {
		case <-agents[i].Ready():
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		case <-deadline.C:
			err = fmt.Errorf("agent %d of %d is not ready after 5 minutes", i, n)
		}
		s.close()
		return err
	}
	for i := range n {
		if i >= startWindow {
			if err := ready(i - startWindow); err != nil {
				return nil, err
			}
		}
		o := agent.Options{DeviceID: deviceID(i), Handlers: map[command.Verb]agent.Handler{command.VerbExec: simulatedExec{}}}
		set(i, &o)
		a, err := agent.New(o)
		if err != nil {
			s.close()
			return nil, err
		}
		s.ids = append(s.ids, deviceID(i))
		agents = append(agents, a)
		s.wg.Go(func() { _ = a.Run(running) }) // ends with nil at close; a fault shows as an agent that is never ready
	}
	for i := max(0, n-startWindow); i < n; i++ {
		if err := ready(i); err != nil {
			return nil, err
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

package stack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// AddAgent starts an agent for a device, which need not be one of DeviceIDs but
// must start with DevicePrefix. name tells agents of one device apart and names
// the state directory; for the first agent of a device it is the device's id.
// It returns before the agent is connected; see [Stack.WaitDevice].
func (s *Stack) AddAgent(_ context.Context, name, id string) error {
	a, err := s.newAgent(name, id)
	if err != nil {
		return fmt.Errorf("agent %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return errors.New("the fleet is being stopped")
	}
	if s.agents[name] != nil {
		return fmt.Errorf("agent %s runs", name)
	}
	s.agents[name] = s.start("agent "+name, a.Run)
	return nil
}

func (s *Stack) newAgent(name, id string) (*agent.Agent, error) {
	if err := command.CheckDeviceID(id); err != nil {
		return nil, err
	}
	stateDir, err := s.dir.sub("agents", name)
	if err != nil {
		return nil, err
	}
	creds, err := s.deviceCredentials(id)
	if err != nil {
		return nil, err
	}
	return agent.New(agent.Options{
		DeviceID: id,
		StateDir: stateDir,
		NATS: natsconn.Config{
			URLs: []string{s.NATSURL()}, TLS: natsconn.TLS{CA: s.tls.ca}, Credentials: creds, Options: natsconn.Soon(),
		},
		RuntimeEnabled: s.opts.RuntimeSocket != "",
		RuntimeSocket:  s.opts.RuntimeSocket,
		Policy:         s.opts.Policy,
		// One machine: nothing has to be spread out, and Ctrl-C is not to wait.
		RetryMin: 50 * time.Millisecond, RetryMax: time.Second, DrainTimeout: time.Second,
		Logger: s.log.With("part", "agent"),
	})
}

// deviceCredentials are what a device signs in with: its machine key, or the
// user that all devices share.
func (s *Stack) deviceCredentials(id string) (credentials.Source, error) {
	if s.opts.Auth == UserPass {
		user, password := s.UserPassword(access.Fleet)
		return credentials.New(credentials.Config{Type: credentials.TypeShared, User: user, Password: password})
	}
	if s.issuer.UserID(deviceUser(id)) == "" {
		if err := s.issuer.AddUser(issuer.User{Name: deviceUser(id), Roles: []string{string(access.RoleDevice)}}); err != nil {
			return nil, err
		}
		if err := s.keepKey(id); err != nil {
			return nil, err
		}
	}
	return credentials.New(credentials.Config{
		Type: credentials.TypeZitadelKey, Issuer: s.issuer.URL(), KeyFile: s.dir.keyFile(id),
		ProjectID: s.issuer.ProjectID(), CAFile: s.tls.ca,
		Logger: s.log.With("part", "credentials", "device_id", id),
	})
}

// StopAgent stops an agent as a shutdown of its device would, and waits for it.
func (s *Stack) StopAgent(name string) error {
	s.mu.Lock()
	a := s.agents[name]
	delete(s.agents, name)
	s.mu.Unlock()
	if a == nil {
		return fmt.Errorf("agent %s does not run", name)
	}
	if err := a.stop(); err != nil {
		return fmt.Errorf("agent %s: %w", name, err)
	}
	return nil
}

// WaitDevice waits until an agent takes the commands of the device, as the
// broker sees it.
func (s *Stack) WaitDevice(ctx context.Context, id string) error {
	subject := command.Subject(id, command.VerbPing)
	fleet := access.Accounts{}.Name(access.Fleet)
	return until(ctx, func() (bool, error) {
		srv := s.Broker()
		if srv == nil {
			return false, nil
		}
		account, err := srv.LookupAccount(fleet)
		return err == nil && account.Interest(subject) > 0, nil
	})
}

// waitAgents waits until every agent that was started takes commands.
func (s *Stack) waitAgents(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, id := range s.DeviceIDs() {
		s.mu.Lock()
		a := s.agents[id]
		s.mu.Unlock()
		if err := s.WaitDevice(ctx, id); err != nil {
			if failed := a.failed(); failed != nil {
				err = failed
			}
			return fmt.Errorf("agent %s did not come up: %w", id, err)
		}
	}
	return nil
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/stack"
)

// Reconnect is how long it takes, from when the broker listens again after a
// restart, until every agent takes commands again: each has signed in with a token
// of its own, which the callout verified. Agents spread their attempts over 12 s.
// Everything shares the machine. The second figure is over TCP with TLS, of as
// many agents as one process has room for.
var Reconnect = Measurement{"reconnect", measureReconnect}

// mostTCP agents leave room in one process for both ends of each connection and
// each spool, where a process may have 20,000 files open.
const mostTCP = 4000

func measureReconnect(ctx context.Context, o Options, dir string) ([]Result, error) {
	inside, err := reconnect(ctx, o, o.Return, false, dir+"/inside")
	if err != nil {
		return nil, err
	}
	n := min(o.Return, mostTCP)
	tls, err := reconnect(ctx, o, n, true, dir+"/tls")
	if err != nil {
		return nil, err
	}
	result := func(name, how string, n int, took time.Duration) Result {
		return Result{
			Name: name, What: fmt.Sprintf("%d agents back after a restart of the broker, tokens verified, %s", n, how),
			Unit: "s", Value: took.Seconds(), Target: "< 30 s", Met: took < 30*time.Second,
		}
	}
	return []Result{result("reconnect", "in one process", o.Return, inside), result("reconnect_tls", "TCP with TLS", n, tls)}, nil
}

// provider gives connections to the broker that runs now.
type provider struct{ stack *stack.Stack }

func (p provider) InProcessConn() (net.Conn, error) {
	if srv := p.stack.Broker(); srv != nil {
		return srv.InProcessConn()
	}
	return nil, errors.New("the broker does not run")
}

func reconnect(ctx context.Context, o Options, n int, tls bool, dir string) (time.Duration, error) {
	s, err := stack.Start(ctx, stack.Options{Port: stack.AnyPort, DataDir: dir + "/stack", TLS: tls, DevicePrefix: devicePrefix})
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	tokens := make([]string, n)
	for i := range tokens {
		name := "device-" + deviceID(i)
		if err := s.Issuer().AddUser(issuer.User{Name: name, Roles: []string{string(access.RoleDevice)}}); err != nil {
			return 0, err
		}
		if tokens[i], err = s.Issuer().Mint(name, issuer.MintOptions{}); err != nil {
			return 0, err
		}
	}
	agents, err := startAgentsWith(ctx, n, func(i int) natsconn.Config {
		cfg := natsconn.Config{
			URLs: []string{s.NATSURL()}, TLS: natsconn.TLS{CA: s.CAFile()},
			Credentials: credentials.Static(credentials.Credential{Token: tokens[i]}),
			Options:     o.connect,
		}
		if !tls {
			cfg.InProcess = provider{s}
		}
		return cfg
	}, dir+"/agents")
	if err != nil {
		return 0, err
	}
	defer agents.close()
	o.Log.Info("every agent takes commands; the broker restarts", "agents", n)
	s.StopBroker()
	begin := time.Now()
	if err := s.StartBroker(ctx); err != nil {
		return 0, err
	}
	wait, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, id := range agents.ids {
		if err := s.WaitDevice(wait, id); err != nil {
			return 0, fmt.Errorf("%s did not come back: %w", id, err)
		}
	}
	return time.Since(begin), nil
}

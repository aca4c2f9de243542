// Package stack runs the whole system in one process: broker, token issuer,
// auth callout, streams and any number of agents, with real sockets, real tokens
// and real permissions. `fleet up` is this package with a terminal in front of
// it, and the tests of the whole system run on it in both ways to sign in.
//
//	s, err := stack.Start(ctx, stack.Options{Devices: 3})
//	if err != nil { … }
//	defer s.Close()
//	result, err := s.Client().Ping(ctx, s.DeviceIDs()[0])
//
// In callout mode (the default) each agent has a machine key file and asks the
// issuer for tokens as it would in the field; the callout turns those into
// permissions. In userpass mode there are three static users and no callout.
//
// Each part can be stopped and started again while the others go on, for tests
// of faults: see [Stack.StopBroker], [Stack.StopCallout], [Stack.Issuer],
// [Stack.StopAgent] and [Stack.AddAgent].
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent/workload"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// Auth is a way to sign in.
type Auth string

// The ways to sign in.
const (
	Callout  Auth = "callout"  // OIDC tokens, by way of the auth callout
	UserPass Auth = "userpass" // static users; devices are not isolated from each other
)

// AnyPort asks for a free port.
const AnyPort = broker.AnyPort

// Defaults of Options.
const (
	DefaultDevicePrefix  = "vm-device-"
	DefaultTokenLifetime = 12 * time.Hour
)

// Options say what to run. The zero value is one device in callout mode on port
// 4222 with a temporary directory. Nothing in it may change after Start.
type Options struct {
	// Devices is how many agents run, as vm-device-00, vm-device-01, …; 0: none.
	Devices int
	// DevicePrefix is what their ids start with. Default "vm-device-".
	DevicePrefix string
	// Auth is the way to sign in. Default Callout.
	Auth Auth
	// DataDir keeps the state of everything over a restart. One process at a time
	// may use it. Empty: a temporary directory that Close removes.
	DataDir string
	// Port of the broker on 127.0.0.1. 0 means 4222, AnyPort a free one.
	Port int
	// TLS makes broker and issuer speak TLS only, with a generated authority; see
	// [Stack.CAFile].
	TLS bool
	// TokenLifetime is how long the tokens of the issuer live. Default 12 h.
	TokenLifetime time.Duration
	// AdminTokenLifetime is how long the tokens of [Stack.AdminToken] live, which are
	// renewed when a quarter of it is left. Default: TokenLifetime.
	AdminTokenLifetime time.Duration
	// RuntimeSocket is the container engine of the agents, for example
	// "unix:///run/podman/podman.sock". Empty: they run no containers.
	RuntimeSocket string
	// Policy is what the agents allow of logs, exec and shell.
	Policy workload.Policy
	// OnAdminToken is called with each new admin token, the first one included, from
	// a goroutine of the stack. It must return soon. nil: nobody.
	OnAdminToken func(token string)
	// Logger gets the log of all parts; nil discards it.
	Logger *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.DevicePrefix == "" {
		o.DevicePrefix = DefaultDevicePrefix
	}
	if o.Auth == "" {
		o.Auth = Callout
	}
	if o.TokenLifetime == 0 {
		o.TokenLifetime = DefaultTokenLifetime
	}
	if o.AdminTokenLifetime == 0 {
		o.AdminTokenLifetime = o.TokenLifetime
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Auth != Callout && o.Auth != UserPass:
		return fmt.Errorf("way to sign in %q is not known; there are %s and %s", o.Auth, Callout, UserPass)
	case o.Devices < 0 || o.Devices > 10000:
		return fmt.Errorf("%d devices: the number is from 0 to 10000", o.Devices)
	}
	return command.CheckDeviceID(deviceID(o.DevicePrefix, max(o.Devices-1, 0)))
}

func deviceID(prefix string, n int) string { return fmt.Sprintf("%s%02d", prefix, n) }

// Stack is a running system. Its methods may be called from any goroutine; those
// that stop and start the same part, one at a time.
type Stack struct {
	opts    Options
	log     *slog.Logger
	dir     *directory
	secrets secrets
	tls     tlsFiles // zero without TLS
	seeds   callout.Seeds

	// ctx ends when the stack is closed; every goroutine ends with it and is
	// waited for in wg.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	issuer *issuer.Server // nil in userpass mode
	conns  natsconn.Group

	mu         sync.Mutex
	brokerCfg  broker.Config // with the port that was found
	broker     *broker.Server
	callout    *running
	agents     map[string]*running // by name, which is the device id for the first of each
	adminToken string
	users      int // counts identities made by ConnectAs

	operator *nats.Conn
	client   *client.Client

	failed chan error

	closeOnce sync.Once
	closeErr  error
}

// Start brings everything up and returns when every agent takes commands. ctx
// bounds the start only. What was started is taken down again where a later
// part fails.
func Start(ctx context.Context, opts Options) (_ *Stack, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	s := &Stack{opts: opts, log: opts.Logger, agents: map[string]*running{}, failed: make(chan error, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.dir, err = openDirectory(opts.DataDir); err != nil {
		return nil, err
	}
	if s.secrets, err = s.dir.loadSecrets(); err != nil {
		return nil, err
	}
	if opts.TLS {
		if s.tls, err = s.dir.makeTLS(); err != nil {
			return nil, err
		}
	}
	if opts.Auth == Callout {
		if s.seeds, err = s.dir.loadSeeds(); err != nil {
			return nil, err
		}
	}
	if s.brokerCfg, err = s.brokerConfig(); err != nil {
		return nil, err
	}
	// The broker comes first: a port in use is the fault that happens most.
	if err := s.StartBroker(ctx); err != nil {
		return nil, err
	}
	if opts.Auth == Callout {
		if err := s.startIssuer(ctx); err != nil {
			return nil, err
		}
		if err := s.StartCallout(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.provision(ctx); err != nil {
		return nil, err
	}
	// Before many agents sign in at once.
	if s.operator, err = s.connect(ctx, access.Ops, "fleet-up"); err != nil {
		return nil, err
	}
	for _, id := range s.DeviceIDs() {
		if err := s.AddAgent(ctx, id, id); err != nil {
			return nil, err
		}
	}
	if s.client, err = client.New(s.operator, client.Options{Logger: s.log}); err != nil {
		return nil, err
	}
	return s, s.waitAgents(ctx)
}

// DeviceIDs are the ids of the devices that Start made.
func (s *Stack) DeviceIDs() []string {
	ids := make([]string, s.opts.Devices)
	for i := range ids {
		ids[i] = deviceID(s.opts.DevicePrefix, i)
	}
	return ids
}

// NATSURL is where clients connect. It stays the same when the broker restarts.
func (s *Stack) NATSURL() string {
	scheme := "nats"
	if s.opts.TLS {
		scheme = "tls"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, s.brokerCfg.Port)
}

// CAFile is the PEM file of the generated authority; empty without TLS.
func (s *Stack) CAFile() string { return s.tls.ca }

// DataDir is where the state is kept.
func (s *Stack) DataDir() string { return s.dir.path }

// Auth is the way to sign in.
func (s *Stack) Auth() Auth { return s.opts.Auth }

// Issuer is the token issuer, which has methods of its own to stop, restart and
// rotate keys; nil in userpass mode.
func (s *Stack) Issuer() *issuer.Server { return s.issuer }

// Client sends commands as [Stack.OperatorConn].
func (s *Stack) Client() *client.Client { return s.client }

// OperatorConn is a connection of the admin in the operators' account. The
// stack closes it.
func (s *Stack) OperatorConn() *nats.Conn { return s.operator }

// Failed receives the first error of a part that ended by itself, which none of
// them does in the ordinary course of things.
func (s *Stack) Failed() <-chan error { return s.failed }

// Close stops everything, waits for it, and removes a temporary directory. It
// may be called more than once.
func (s *Stack) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Stack) close() error {
	// Clients first, then agents, which finish what they accepted and so need
	// the broker, then what they depend on.
	s.cancel()
	if s.client != nil {
		s.client.Close()
	}
	s.mu.Lock()
	agents := s.agents
	s.agents = map[string]*running{}
	s.mu.Unlock()
	s.conns.Close()
	var errs []error
	for _, a := range agents {
		a.cancel()
	}
	for _, a := range agents {
		errs = append(errs, a.stop())
	}
	errs = append(errs, s.StopCallout())
	if s.issuer != nil {
		s.issuer.Close()
	}
	s.StopBroker()
	s.wg.Wait()
	if s.dir != nil {
		errs = append(errs, s.dir.close())
	}
	return errors.Join(errs...)
}

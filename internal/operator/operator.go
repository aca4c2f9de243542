// Package operator is fleet-operator: it keeps Device and Deployment objects in
// Kubernetes and the fleet behind the broker the same.
//
//	op, err := operator.New(operator.Options{Config: cfg, Logger: log})
//	err = op.Run(ctx)
//
// Data flows one way around: devices report to the broker's streams, package mirror
// holds what they say in memory, the controllers write objects from it, and desired
// state goes back through the mirror. Only the replica that leads does any of that;
// others wait, connected. What is missing (the resource definitions, a permission,
// the broker) is named in the log and at /readyz, and waited for: nothing ends the
// program but a configuration that can never work, or the loss of the lead.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/nats-io/nats.go"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/operator/config"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/version"
)

// Requests to the API server that may be under way in a second, for bursts such as
// the first report of a whole fleet; the server's own priorities hold beside it.
const (
	requestsPerSecond = 500
	requestsBurst     = 1000
)

// credentialTries bounds the wait for a first credential.
const credentialTries = 12

// Options of an operator; Config is needed.
type Options struct {
	Config config.Config
	// Rest, for tests, is the API server in place of the configured one.
	Rest *rest.Config
	// Mirror, for tests, shrinks its times.
	Mirror mirror.Options
	// Logger gets what happens; nil discards.
	Logger *slog.Logger
}

// Operator is one replica.
type Operator struct {
	opts Options
	cfg  config.Config
	log  *slog.Logger
	rest *rest.Config
	cred credentials.Source

	state state
}

// useLogger is for the Kubernetes libraries, which log by way of global variables.
var useLogger sync.Once

// New makes an operator, or says why that configuration can never work.
func New(o Options) (*Operator, error) {
	op := &Operator{opts: o, cfg: o.Config, log: o.Logger, rest: o.Rest}
	if op.log == nil {
		op.log = slog.New(slog.DiscardHandler)
	}
	op.state.set("starting")
	useLogger.Do(func() {
		l := logr.FromSlogHandler(op.log.Handler())
		ctrl.SetLogger(l)
		klog.SetLogger(l)
	})
	if op.rest == nil {
		var err error
		// With no file it is that of the Pod.
		if op.rest, err = clientcmd.BuildConfigFromFlags("", op.cfg.Kubernetes.Kubeconfig); err != nil {
			return nil, fmt.Errorf("kubernetes.kubeconfig: %w", err)
		}
	}
	op.rest = rest.CopyConfig(op.rest)
	op.rest.QPS, op.rest.Burst = requestsPerSecond, requestsBurst
	op.rest.UserAgent = "fleet-operator/" + version.String()
	sign := op.cfg.Credentials
	sign.Logger = op.log
	var err error
	op.cred, err = credentials.New(sign)
	return op, err
}

// Run acts until ctx ends. An error means that the replica cannot go on; another run
// of the program may.
func (op *Operator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var servers sync.WaitGroup
	defer servers.Wait()
	defer cancel(nil)
	for _, s := range []struct {
		what, listen string
		handler      http.Handler
	}{{"health", op.cfg.Health.Listen, op.state.handler()}, {"metrics", op.cfg.Metrics.Listen, op.state.metrics()}} {
		if s.listen == "off" {
			continue
		}
		serve, addr, err := listen(s.what, s.listen, s.handler)
		if err != nil {
			return err
		}
		op.state.setAddr(s.what, addr)
		servers.Go(func() {
			if err := serve(ctx); err != nil {
				cancel(err)
			}
		})
	}
	err := op.run(ctx)
	if cause := context.Cause(ctx); ctx.Err() != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

func (op *Operator) run(ctx context.Context) error {
	nc, err := op.connect(ctx)
	if err != nil || nc == nil {
		return err
	}
	defer nc.Close()
	owner, ok, err := op.await(ctx)
	if err != nil || !ok {
		return err
	}
	o := op.opts.Mirror
	o.Logger = op.log
	if op.cfg.Provision {
		o.Prepare = op.provision
	}
	m := mirror.New(nc, o)
	op.state.connected(nc, m)
	if err := op.manage(ctx, m, owner); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// connect returns at once, connected or not; nil where ctx ended before.
func (op *Operator) connect(ctx context.Context) (*nats.Conn, error) {
	inbox, err := op.inbox(ctx)
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	nc, err := natsconn.Connect(ctx, natsconn.Config{
		URLs: op.cfg.NATS.URL, TLS: op.cfg.NATS.TLS, Insecure: op.cfg.NATS.Insecure, Credentials: op.cred,
		InboxPrefix: inbox, Name: "fleet-operator " + version.String(), Retry: true, Logger: op.log,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if !nc.IsConnected() {
		op.log.Warn("the broker does not answer yet; trying on", "url", op.cfg.NATS.URL)
	}
	return nc, nil
}

// inbox is the only prefix under which the operator receives replies: it follows from
// who it is, which a token says.
func (op *Operator) inbox(ctx context.Context) (string, error) {
	for try := 1; ; try++ {
		cred, err := op.cred.Credential(ctx)
		if err == nil && cred.Token == "" {
			return command.InboxPrefix(command.UID(cred.User)), nil
		}
		if err == nil {
			user, ok := credentials.TokenUser(cred.Token)
			if !ok {
				return "", errors.New("[credentials]: the token is not an OIDC token (a JWT with iss and sub)")
			}
			return command.InboxPrefix(command.UID(user)), nil
		}
		if ctx.Err() != nil {
			return "", nil
		}
		if try == credentialTries {
			return "", fmt.Errorf("no credential to sign in to NATS with: %w", err)
		}
		op.state.set("no credential: %v", err)
		op.log.Warn("no credential to sign in to NATS with; trying on", "error", err)
		op.sleep(ctx, retryPause)
	}
}

func (op *Operator) provision(ctx context.Context, nc *nats.Conn) error {
	s := op.cfg.Streams
	changes, err := broker.Provision(ctx, nc, broker.ProvisionOptions{
		Replicas: s.Replicas, AuditPerSubject: s.AuditPerSubject, AuditMaxAge: time.Duration(s.AuditMaxAge),
	})
	for _, c := range changes {
		if c.Action != "unchanged" {
			op.log.Info("stream provisioned", "stream", c.Stream, "action", c.Action)
		}
	}
	return err
}

func (op *Operator) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

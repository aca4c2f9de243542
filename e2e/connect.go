package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
)

// connect signs in to NATS as soon as it answers, provisions it, lets the devices in
// and waits until all of them take commands.
func (s *Stack) connect(ctx context.Context, nodePort int32) error {
	address, err := s.findEdge(ctx, nodePort)
	if err != nil {
		return err
	}
	s.NATSURL = "tls://" + address
	s.step("NATS takes connections")
	system, err := s.dialUntil(ctx, s.systemLogin())
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.system = system
	s.mu.Unlock()
	if s.opts.AuthMode == Callout {
		if err := s.awaitCallout(ctx); err != nil {
			return err
		}
		s.step("the callout serves")
	}
	var data *nats.Conn
	err = together(
		func() (err error) { data, err = s.dialUntil(ctx, s.adminLogin(access.Data)); return err },
		func() (err error) { s.operator, err = s.dialUntil(ctx, s.adminLogin(access.Ops)); return err },
	)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.data, s.brokerID = data, data.ConnectedServerId()
	s.mu.Unlock()
	s.step("signed in")
	if s.client, err = client.New(s.operator, client.Options{}); err != nil {
		return err
	}
	arrivals, err := s.watchArrivals()
	if err != nil {
		return err
	}
	defer arrivals.stop()
	if err := s.openBroker(ctx); err != nil {
		return err
	}
	s.step("provisioned, and open to devices")
	if !s.opts.AgentTarget.early() {
		if err := s.opts.AgentTarget.start(ctx, s, s.DeviceIDs); err != nil {
			return err
		}
	}
	if err := arrivals.await(ctx, s.DeviceIDs); err != nil {
		return err
	}
	s.step("all devices are there")
	return nil
}

// login is who signs in, and under which inbox prefix it gets replies.
type login struct {
	name   string
	source credentials.Source
	inbox  string
}

func (s *Stack) systemLogin() login {
	return login{name: "fleet-e2e system", inbox: nats.InboxPrefix[:len(nats.InboxPrefix)-1],
		source: credentials.Static(credentials.Credential{User: broker.UserSystem, Password: s.secrets.system})}
}

func (s *Stack) adminLogin(account access.Account) login {
	l := login{name: "fleet-e2e " + string(account)}
	if s.opts.AuthMode == UserPass {
		user, password := s.secrets.user(account)
		l.source, l.inbox = credentials.Static(credentials.Credential{User: user, Password: password}), command.InboxPrefix(command.UID(user))
		return l
	}
	uid, err := uidOf(s.AdminToken)
	if err != nil {
		l.source = failing{err}
		return l
	}
	l.source = credentials.Static(credentials.Credential{User: string(account), Token: s.AdminToken})
	l.inbox = command.InboxPrefix(uid)
	return l
}

// failing is a source that has no credential.
type failing struct{ err error }

func (f failing) Credential(context.Context) (credentials.Credential, error) {
	return credentials.Credential{}, f.err
}

// dial makes a connection that the stack closes at the latest. It comes back soon
// when NATS does.
func (s *Stack) dial(ctx context.Context, l login) (*nats.Conn, error) {
	return s.conns.Connect(ctx, natsconn.Config{
		URLs: []string{s.NATSURL}, TLS: natsconn.TLS{CA: s.CAFile}, Credentials: l.source, InboxPrefix: l.inbox,
		Name: l.name, Logger: s.opts.Logger, Options: natsconn.Soon(),
	})
}

// dialUntil dials until it works or ctx ends: the address may answer before all of
// what is behind it does.
func (s *Stack) dialUntil(ctx context.Context, l login) (*nats.Conn, error) {
	for {
		nc, err := s.dial(ctx, l)
		if err == nil {
			return nc, nil
		}
		wait := retryPause
		if errors.Is(err, client.ErrDenied) { // the callout does not have the issuer's keys yet
			wait *= 3
		}
		if !pause(ctx, wait) {
			return nil, fmt.Errorf("%s at %s: %w", l.name, s.NATSURL, errors.Join(context.Cause(ctx), err))
		}
	}
}

// awaitCallout waits until the callout has subscribed to logins. Whoever signs in
// before that waits for two seconds and is refused.
func (s *Stack) awaitCallout(ctx context.Context) error {
	request, err := json.Marshal(map[string]any{"account": access.Accounts{}.WithDefaults().Auth, "test": "$SYS.REQ.USER.AUTH", "subscriptions": true})
	if err != nil {
		return err
	}
	for {
		var reply struct {
			Data struct {
				Total int `json:"total"`
			} `json:"data"`
		}
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		msg, err := s.system.RequestWithContext(attempt, "$SYS.REQ.SERVER.PING.SUBSZ", request)
		cancel()
		if err == nil {
			err = json.Unmarshal(msg.Data, &reply)
		}
		if err == nil && reply.Data.Total > 0 {
			return nil
		}
		if !pause(ctx, retryPause) {
			return fmt.Errorf("the callout does not serve logins: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

// openBroker makes streams and buckets, and only then lets devices in: the status
// of a device that was faster would be stored nowhere.
func (s *Stack) openBroker(ctx context.Context) error {
	s.mu.Lock()
	data := s.data
	s.mu.Unlock()
	if _, err := broker.Provision(ctx, data, broker.ProvisionOptions{}); err != nil {
		return err
	}
	patch := []byte(`{"metadata":{"labels":{"` + labelOpen + `":"true"}}}`)
	if _, err := s.kube.CoreV1().Pods(s.Namespace).Patch(ctx, partNATS, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("open NATS to devices: %w", err)
	}
	return nil
}

// reopenBroker provisions a new Pod of NATS, which begins with nothing, and lets the
// devices in again.
func (s *Stack) reopenBroker() {
	s.mu.Lock()
	before, data := s.brokerID, s.data
	s.mu.Unlock()
	if data == nil {
		return // it is still being brought up
	}
	for pause(s.ctx, retryPause) {
		id := data.ConnectedServerId()
		if !data.IsConnected() || id == before { // of the Pod that is gone
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
		err := s.openBroker(ctx)
		cancel()
		if err == nil {
			s.mu.Lock()
			s.brokerID = id
			s.mu.Unlock()
			return
		}
		s.opts.Logger.Debug("the new NATS is not open yet", "error", err)
	}
}

// openTimeout bounds one attempt to provision NATS.
const openTimeout = 10 * time.Second

// arrivals knows which devices have come up: each tells its status when it takes
// commands.
type arrivals struct {
	sub  *nats.Subscription
	mu   sync.Mutex
	seen map[string]bool
	more chan struct{} // has room for one
}

func (s *Stack) watchArrivals() (*arrivals, error) {
	a := &arrivals{seen: map[string]bool{}, more: make(chan struct{}, 1)}
	prefix := strings.TrimSuffix(command.StatusSubject("*"), "*")
	var err error
	a.sub, err = s.operator.Subscribe(command.StatusSubject("*"), func(msg *nats.Msg) {
		a.mu.Lock()
		a.seen[strings.TrimPrefix(msg.Subject, prefix)] = true
		a.mu.Unlock()
		select {
		case a.more <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch for devices: %w", err)
	}
	return a, s.operator.FlushTimeout(natsconn.ConnectTimeout)
}

func (a *arrivals) stop() { _ = a.sub.Unsubscribe() } // fails where the connection is gone

// await waits until all the devices have told their status.
func (a *arrivals) await(ctx context.Context, devices []string) error {
	for {
		a.mu.Lock()
		missing := slices.DeleteFunc(slices.Clone(devices), func(id string) bool { return a.seen[id] })
		a.mu.Unlock()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d devices did not come up, %s among them: %w", len(missing), len(devices), missing[0], context.Cause(ctx))
		case <-a.more:
		}
	}
}

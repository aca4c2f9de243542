package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/testcert"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// password is that of every static user.
const password = "secret"

// world is a fleet: one broker or more, in processes of their own, and ways to
// sign in to them.
type world struct {
	t     *testing.T
	nodes []*node
	tls   natsconn.TLS
	urls  []string // of all nodes
	// callout mode; nil: static users
	issuer  *issuer.Server
	callout *calloutService
}

// newWorld runs one broker with static users on storeDir.
func newWorld(t *testing.T, storeDir string) *world {
	t.Helper()
	w := &world{t: t}
	w.addNode(nodeOptions{Broker: broker.Config{Port: broker.AnyPort, StoreDir: storeDir, UserPass: staticUsers()}}, nil)
	w.provision(broker.ProvisionOptions{})
	return w
}

func staticUsers() *broker.UserPass {
	return &broker.UserPass{Ops: password, Data: password, Device: password}
}

func (w *world) addNode(o nodeOptions, attach func(pid int) error) {
	w.t.Helper()
	n := startNode(w.t, o, attach)
	w.nodes = append(w.nodes, n)
	scheme := "nats"
	if o.Broker.TLS != nil {
		scheme = "tls"
	}
	w.urls = append(w.urls, scheme+"://"+n.addr)
}

// newCalloutWorld runs a broker with TLS, an issuer, and a callout that reaches
// the broker through via, if that is not nil.
func newCalloutWorld(t *testing.T, via func(broker string) string) *world {
	t.Helper()
	w := &world{t: t}
	cert := testcert.New(t)
	w.tls.CA = cert.CA
	seeds, err := callout.NewSeeds()
	if err != nil {
		t.Fatal(err)
	}
	public, err := seeds.Public()
	if err != nil {
		t.Fatal(err)
	}
	w.addNode(nodeOptions{Broker: broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), TLS: &broker.TLS{CertFile: cert.Cert, KeyFile: cert.Key},
		Callout: &broker.Callout{Issuer: public.Issuer, XKey: public.XKey, Password: password},
	}}, nil)
	if w.issuer, err = issuer.Start(context.Background(), issuer.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.issuer.Close)
	addr := w.nodes[0].addr
	if via != nil {
		addr = via(addr)
	}
	w.callout = &calloutService{t: t, options: callout.Options{Seeds: seeds, Config: callout.Config{
		Listen: "off",
		NATS: callout.NATS{
			URL: callout.URLs{"tls://" + addr}, User: broker.UserCallout, Password: password, TLS: callout.TLS{CA: cert.CA},
		},
		Issuers: []callout.Issuer{{
			URL: w.issuer.URL(), Audience: w.issuer.ProjectID(), ProjectID: w.issuer.ProjectID(), Roles: access.Roles(), Devices: "*",
		}},
	}}}
	w.callout.start()
	t.Cleanup(w.callout.stop)
	w.provision(broker.ProvisionOptions{})
	return w
}

// calloutService is a callout that a test ends and starts again.
type calloutService struct {
	t       *testing.T
	options callout.Options
	cancel  context.CancelFunc
	done    chan struct{}
}

func (c *calloutService) start() {
	c.t.Helper()
	svc, err := callout.New(c.options)
	if err != nil {
		c.t.Fatal(err)
	}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(context.Background())
	c.done = make(chan struct{})
	go func() {
		defer close(c.done)
		if err := svc.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			c.t.Errorf("callout: %v", err)
		}
	}()
	testwait.For(c.t, patience, "the callout to be ready", func() bool { return svc.NotReady() == nil })
}

func (c *calloutService) stop() {
	if c.cancel != nil {
		c.cancel()
		<-c.done
	}
}

// token is that of a new person, or of a device, with the role.
func (w *world) token(name string, role access.Role) string {
	w.t.Helper()
	if w.issuer.UserID(name) == "" {
		if err := w.issuer.AddUser(issuer.User{Name: name, Roles: []string{string(role)}}); err != nil {
			w.t.Fatal(err)
		}
	}
	token, err := w.issuer.Mint(name, issuer.MintOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// conn signs in to an account: as its static user, or as an admin by token.
func (w *world) conn(account access.Account, urls []string, opts ...nats.Option) (*nats.Conn, error) {
	user := map[access.Account]string{access.Ops: broker.UserOps, access.Data: broker.UserData}[account]
	credential := credentials.Credential{User: user, Password: password}
	uid := command.UID(user)
	if w.issuer != nil {
		credential = credentials.Credential{User: string(account), Token: w.token("admin", access.RoleAdmin)}
		uid = command.UID(command.UserName(w.issuer.URL(), w.issuer.UserID("admin")))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return natsconn.Connect(ctx, natsconn.Config{
		URLs: urls, TLS: w.tls, Insecure: true, // to namespaces of this machine
		Credentials: credentials.Static(credential), InboxPrefix: command.InboxPrefix(uid), Options: append(soon(), opts...),
	})
}

// soon makes connections come back quickly: there is no herd.
func soon() []nats.Option {
	return []nats.Option{nats.ReconnectWait(50 * time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond)}
}

func (w *world) mustConn(account access.Account, urls []string, opts ...nats.Option) *nats.Conn {
	w.t.Helper()
	nc, err := w.conn(account, urls, opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

func (w *world) client(urls []string, opts ...nats.Option) *client.Client {
	w.t.Helper()
	c, err := client.New(w.mustConn(access.Ops, urls, opts...), client.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (w *world) provision(o broker.ProvisionOptions) {
	w.t.Helper()
	nc := w.mustConn(access.Data, w.urls)
	defer nc.Close()
	var err error
	testwait.For(w.t, patience, "streams", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err = broker.Provision(ctx, nc, o)
		return err == nil
	})
}

// deviceConfig is how a device connects.
func (w *world) deviceConfig(id string, urls []string, opts ...nats.Option) natsconn.Config {
	w.t.Helper()
	credential := credentials.Credential{User: broker.UserDevice, Password: password}
	if w.issuer != nil {
		credential = credentials.Credential{Token: w.token("device-"+id, access.RoleDevice)}
	}
	return natsconn.Config{URLs: urls, TLS: w.tls, Insecure: true, Credentials: credentials.Static(credential), Options: opts}
}

// agents are real agents in this process.
type agents struct {
	t       *testing.T
	ids     []string
	stopped context.CancelFunc
	wg      sync.WaitGroup
	ended   atomic.Int64 // gave up
}

// newAgents runs agents until the test ends, and returns when all take commands.
func newAgents(t *testing.T, n int, options func(i int, id string) agent.Options) *agents {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &agents{t: t, stopped: cancel}
	t.Cleanup(s.stop)
	const window = 64
	var ready []<-chan struct{}
	limit := time.NewTimer(5 * time.Minute)
	defer limit.Stop()
	await := func(i int) {
		t.Helper()
		select {
		case <-ready[i]:
		case <-limit.C:
			t.Fatalf("agent %d of %d is not ready after 5 minutes", i, n)
		}
	}
	begin := time.Now()
	for i := range n {
		if i >= window {
			await(i - window)
		}
		if i%1000 == 0 && i > 0 {
			t.Logf("%d agents take commands after %v", i-window, time.Since(begin).Round(time.Second))
		}
		id := fmt.Sprintf("d%05d", i)
		o := options(i, id)
		o.DeviceID = id
		a, err := agent.New(o)
		if err != nil {
			t.Fatal(err)
		}
		s.ids, ready = append(s.ids, id), append(ready, a.Ready())
		s.wg.Go(func() {
			if err := a.Run(ctx); err != nil || ctx.Err() == nil {
				s.ended.Add(1)
			}
		})
	}
	for i := max(0, n-window); i < n; i++ {
		await(i)
	}
	return s
}

func (s *agents) stop() {
	s.stopped()
	s.wg.Wait()
	if n := s.ended.Load(); n > 0 {
		s.t.Errorf("%d agents gave up", n)
	}
}

// answers waits until each device has answered a ping, and gives how long after
// begin the last one did.
func answers(t *testing.T, c *client.Client, ids []string, begin time.Time, limit time.Duration) time.Duration {
	t.Helper()
	left := ids
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for ; len(left) > 0; <-again.C {
		var not []string
		var last error
		ctx, cancel := context.WithDeadline(context.Background(), begin.Add(limit))
		for r := range c.PingAll(ctx, left, client.FanOut{}) {
			if r.Err != nil {
				not, last = append(not, r.Device), r.Err
			}
		}
		cancel()
		left = not
		if time.Since(begin) > limit && len(left) > 0 {
			t.Fatalf("%d of %d devices do not answer after %v; the last: %v", len(left), len(ids), limit, last)
		}
	}
	return time.Since(begin)
}

// outcome of a call.
func outcome(err error) command.Outcome {
	var e *command.Error
	switch {
	case err == nil:
		return command.OutcomeOK
	case errors.As(err, &e):
		return e.Outcome
	}
	return "not a *command.Error"
}

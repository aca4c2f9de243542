package callout

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the issuer's provider library logs there
	goleak.VerifyTestMain(m)
}

// soon is less than the 2 s after which a server gives up by itself, so that an answer
// within it was one; and more than a busy machine needs for one.
const soon = 1800 * time.Millisecond

const calloutPassword = "for-the-callout-only"

// logBuffer is a log that a test can read while it is written.
type logBuffer struct{ syncbuf.Buffer }

func (l *logBuffer) count(s string) int { return strings.Count(l.String(), s) }

// env is a broker with the real accounts and an issuer; callouts are started on it.
type env struct {
	broker *broker.Server
	cfg    broker.Config
	issuer *issuer.Server
	seeds  Seeds
	logs   *logBuffer
	level  slog.Level // of the log; benchmarks raise it
	// keysFirst overrides how long callouts wait for keys before they take requests.
	keysFirst time.Duration
}

var users = []issuer.User{
	{Name: "admin", Roles: []string{"fleet-admin"}},
	{Name: "viewer", Roles: []string{"fleet-viewer"}},
	{Name: "deployer", Roles: []string{"fleet-deployer"}},
	{Name: "nobody", Roles: []string{"accountant"}},
	{Name: "controller", Roles: []string{"fleet-controller"}}, // not grantable below
	{Name: "both", Roles: []string{"device", "fleet-viewer"}},
	{Name: "device-vm-1", Roles: []string{"device"}},
	{Name: "device-vm-2", Roles: []string{"device"}},
	{Name: "device-lab-1", Roles: []string{"device"}}, // outside the glob
	{Name: "device-vm_bad", Roles: []string{"device"}},
	{Name: "vm-3", Roles: []string{"device"}}, // without the prefix
}

func newEnv(t testing.TB) *env {
	t.Helper()
	e := &env{logs: &logBuffer{}, level: slog.LevelDebug}
	var err error
	if e.seeds, err = NewSeeds(); err != nil {
		t.Fatal(err)
	}
	pub, err := e.seeds.Public()
	if err != nil {
		t.Fatal(err)
	}
	e.cfg = broker.Config{Port: broker.AnyPort, StoreDir: t.TempDir(),
		Callout: &broker.Callout{Issuer: pub.Issuer, XKey: pub.XKey, Password: calloutPassword}}
	e.startBroker(t)
	t.Cleanup(func() { e.broker.Close() })
	if e.issuer, err = issuer.Start(context.Background(), issuer.Options{Users: users}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.issuer.Close)
	return e
}

func (e *env) startBroker(t testing.TB) {
	t.Helper()
	var err error
	if e.broker, err = broker.Start(context.Background(), e.cfg); err != nil {
		t.Fatal(err)
	}
}

func (e *env) config() Config {
	return Config{
		Listen: "off",
		NATS:   NATS{URL: URLs{e.broker.ClientURL()}, Password: calloutPassword},
		Issuers: []Issuer{{
			URL: e.issuer.URL(), Audience: e.issuer.ProjectID(), ProjectID: e.issuer.ProjectID(),
			Roles:   []access.Role{access.RoleViewer, access.RoleDeployer, access.RoleAdmin, access.RoleDevice},
			Devices: "vm*",
		}},
	}
}

// callout is a running service.
type callout struct {
	*Service
	cancel context.CancelFunc
	done   chan error
}

func (c *callout) stop(t testing.TB) {
	t.Helper()
	c.cancel()
	if err := <-c.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	c.done <- nil
}

// start runs a callout, without waiting for it to be ready.
func (e *env) start(t testing.TB, edit func(*Config)) *callout {
	t.Helper()
	cfg := e.config()
	if edit != nil {
		edit(&cfg)
	}
	svc, err := New(Options{Config: cfg, Seeds: e.seeds, Logger: slog.New(slog.NewTextHandler(e.logs, &slog.HandlerOptions{Level: e.level}))})
	if err != nil {
		t.Fatal(err)
	}
	if e.keysFirst > 0 {
		svc.keysFirst = e.keysFirst
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &callout{Service: svc, cancel: cancel, done: make(chan error, 1)}
	go func() { c.done <- svc.Run(ctx) }()
	t.Cleanup(func() { c.stop(t) })
	return c
}

// serve runs a callout and waits until it is ready.
func (e *env) serve(t testing.TB, edit func(*Config)) *callout {
	t.Helper()
	c := e.start(t, edit)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("%v\n%s", err, e.logs)
	}
	return c
}

func (e *env) token(t testing.TB, user string, o issuer.MintOptions) string {
	t.Helper()
	tok, err := e.issuer.Mint(user, o)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// dial signs in with a token, once.
func (e *env) dial(token string, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.Timeout(10 * time.Second), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
		nats.TokenHandler(func() string { return token })}, opts...)
	return nats.Connect(e.broker.ClientURL(), opts...)
}

func (e *env) mustDial(t testing.TB, token string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := e.dial(token, opts...)
	if err != nil {
		t.Fatalf("signing in: %v\n%s", err, e.logs)
	}
	t.Cleanup(nc.Close)
	return nc
}

type userInfo struct {
	User    string        `json:"user"`
	Account string        `json:"account"`
	Expires time.Duration `json:"expires"`
	Perms   struct {
		Pub struct {
			Allow []string `json:"allow"`
		} `json:"publish"`
	} `json:"permissions"`
}

// whoami asks the server who a connection is.
func whoami(t testing.TB, nc *nats.Conn) userInfo {
	t.Helper()
	msg, err := nc.Request(access.UserInfo, nil, 5*time.Second)
	if err != nil {
		t.Fatalf("user info: %v", err)
	}
	var reply struct {
		Data userInfo `json:"data"`
	}
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		t.Fatal(err)
	}
	return reply.Data
}

// inbox is the option that a person needs to receive replies.
func (e *env) inbox(user string) nats.Option {
	name := command.UserName(e.issuer.URL(), e.issuer.UserID(user))
	return nats.CustomInboxPrefix(command.InboxPrefix(command.UID(name)))
}

// metric sums the samples of one counter whose labels contain all the given values.
func (c *callout) metric(t testing.TB, name string, values ...string) float64 {
	t.Helper()
	families, err := prometheus.Gatherers{c.metrics.registry}.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for _, want := range values {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetValue() == want
				}
				if !found {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

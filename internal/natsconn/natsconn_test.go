package natsconn_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/brokertime"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/testcert"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func startBroker(t *testing.T) *broker.Server {
	t.Helper()
	srv, err := broker.Start(t.Context(), broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), UserPass: &broker.UserPass{Ops: "o", Data: "d", Device: "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return srv
}

func opsConfig(srv *broker.Server, password string) natsconn.Config {
	return natsconn.Config{
		URLs:        []string{srv.ClientURL()},
		Credentials: credentials.Static(credentials.Credential{User: broker.UserOps, Password: password}),
		InboxPrefix: command.InboxPrefix(command.UID(broker.UserOps)),
	}
}

func TestConnectSignsInAndLearnsBrokerTime(t *testing.T) {
	srv := startBroker(t)
	for _, inProcess := range []bool{false, true} {
		cfg := opsConfig(srv, "o")
		if inProcess {
			cfg.InProcess = srv
		}
		nc, err := natsconn.Connect(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		var clock brokertime.Clock
		who, err := clock.Sync(t.Context(), nc)
		if err != nil {
			t.Fatal(err)
		}
		if who.User != broker.UserOps || who.Account != "OPS" || who.Expires != 0 {
			t.Errorf("identity = %+v", who)
		}
		early, _ := clock.Earliest()
		late, ok := clock.Latest()
		if !ok || late.Before(early) {
			t.Errorf("bounds %v … %v", early, late)
		}
		nc.Close()
	}
}

func TestWrongPasswordIsDeniedAtOnce(t *testing.T) {
	srv := startBroker(t)
	_, err := natsconn.Connect(t.Context(), opsConfig(srv, "wrong"))
	var e *command.Error
	if !errors.As(err, &e) || e.Outcome != command.OutcomeDenied {
		t.Fatalf("err = %v", err)
	}
}

type failing struct{}

func (failing) Credential(context.Context) (credentials.Credential, error) {
	return credentials.Credential{}, errors.New("key file is missing")
}

func TestFailuresNameTheCause(t *testing.T) {
	srv := startBroker(t)
	noCredential := opsConfig(srv, "o")
	noCredential.Credentials = failing{}
	noServer := opsConfig(srv, "o")
	noServer.URLs = []string{"nats://127.0.0.1:1"}
	for name, tc := range map[string]struct {
		cfg  natsconn.Config
		want string
	}{
		"credential source fails": {noCredential, "key file is missing"},
		"no server":               {noServer, "no broker answers at nats://127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := natsconn.Connect(t.Context(), tc.cfg)
			var e *command.Error
			if !errors.As(err, &e) || e.Outcome != command.OutcomeFailed || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("err = %v, want failed and %q", err, tc.want)
			}
		})
	}
}

func TestSecretsDoNotTravelInClear(t *testing.T) {
	for _, tc := range []struct {
		url                 string
		ca, secret, allowed bool
		want                string // part of the error; empty: accepted
	}{
		{url: "nats://127.0.0.1:4222", secret: true},
		{url: "localhost:4222", secret: true},
		{url: "nats://[::1]:4222", secret: true},
		{url: "tls://nats.example:4222", secret: true},
		{url: "wss://nats.example", secret: true},
		{url: "nats://nats.example:4222", secret: true, ca: true},
		{url: "nats://nats.example:4222", secret: true, allowed: true},
		{url: "nats://nats.example:4222"},
		{url: "nats://nats.example:4222", secret: true, want: "plaintext"},
		{url: "ws://nats.example:80", secret: true, ca: true, want: "plaintext"},
		{url: "nats://127.0.0.1.example:4222", secret: true, want: "plaintext"},
		{url: "nats://u:hunter2@127.0.0.1:4222", secret: true, want: "holds a user"},
		{url: "http://127.0.0.1:4222", want: "unknown scheme"},
		{url: "nats://", want: "want nats://host:port"},
		{url: "nats://u:hunter2@[bad", want: "want nats://host:port"},
	} {
		_, err := natsconn.CheckURL(tc.url, tc.ca, tc.secret, tc.allowed)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%+v: %v", tc, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%+v: err = %v", tc, err)
		case err != nil && strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%s: the password is in the error", tc.url)
		}
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counting gives another token each time, and says how often it was asked.
type counting struct {
	asked atomic.Int32
	user  string
}

func (c *counting) Credential(context.Context) (credentials.Credential, error) {
	c.asked.Add(1)
	return credentials.Credential{User: c.user, Password: "o"}, nil
}

func TestCredentialIsAskedForAtEachConnect(t *testing.T) {
	dir := t.TempDir()
	cfg := broker.Config{Port: broker.AnyPort, StoreDir: dir, UserPass: &broker.UserPass{Ops: "o", Data: "d", Device: "v"}}
	srv, err := broker.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	src := &counting{user: broker.UserOps}
	conf := opsConfig(srv, "")
	conf.Credentials = src
	conf.Options = []nats.Option{nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0)}
	nc, err := natsconn.Connect(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if got := src.asked.Load(); got != 1 {
		t.Errorf("asked %d times for one connect", got)
	}
	_, port, err := net.SplitHostPort(srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	srv.Close()
	if srv, err = broker.Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	testwait.For(t, 10*time.Second, "reconnected", nc.IsConnected)
	if got := src.asked.Load(); got < 2 {
		t.Errorf("asked %d times for a connect and a reconnect", got)
	}
}

func TestRetryWaitsForTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	nc, err := natsconn.Connect(t.Context(), natsconn.Config{
		URLs: []string{addr.String()}, Retry: true,
		Credentials: credentials.Static(credentials.Credential{User: broker.UserOps, Password: "o"}),
		Options:     []nats.Option{nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if nc.IsConnected() {
		t.Fatal("connected to nothing")
	}
	srv, err := broker.Start(t.Context(), broker.Config{
		Port: addr.Port, StoreDir: t.TempDir(), UserPass: &broker.UserPass{Ops: "o", Data: "d", Device: "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	testwait.For(t, 10*time.Second, "connected", nc.IsConnected)
}

// TestContextEndsConnect uses a server that accepts and says nothing.
func TestContextEndsConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			accepted <- conn
			cancel()
		}
	}()
	started := time.Now()
	_, err = natsconn.Connect(ctx, natsconn.Config{URLs: []string{l.Addr().String()}})
	var e *command.Error
	if !errors.As(err, &e) || !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
	if since := time.Since(started); since >= natsconn.ConnectTimeout {
		t.Errorf("Connect held on for %v", since)
	}
	_ = (<-accepted).Close()
}

func TestContextOfConnectDoesNotEndTheConnection(t *testing.T) {
	srv := startBroker(t)
	ctx, cancel := context.WithCancel(t.Context())
	nc, err := natsconn.Connect(ctx, opsConfig(srv, "o"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	cancel()
	if err := nc.FlushTimeout(5 * time.Second); err != nil || nc.Stats().Reconnects != 0 {
		t.Errorf("flush: %v, %d reconnects", err, nc.Stats().Reconnects)
	}
}

func TestPlaintextAddressIsNotDialledWithASecret(t *testing.T) {
	_, err := natsconn.Connect(t.Context(), natsconn.Config{
		URLs:        []string{"nats://192.0.2.1:4222"}, // TEST-NET-1: a dial would hang
		Credentials: credentials.Static(credentials.Credential{Token: "secret-token"}),
	})
	var e *command.Error
	if !errors.As(err, &e) || e.Outcome != command.OutcomeRejected || strings.Contains(err.Error(), "secret-token") {
		t.Fatalf("err = %v", err)
	}
}

func TestDiscoveredServersAreIgnoredOverPlaintext(t *testing.T) {
	srv := startBroker(t)
	for _, tc := range []struct {
		name   string
		change func(*natsconn.Config)
		want   bool
	}{
		{"loopback with a secret", func(*natsconn.Config) {}, true},
		{"insecure allowed", func(c *natsconn.Config) { c.Insecure = true }, false},
	} {
		cfg := opsConfig(srv, "o")
		tc.change(&cfg)
		nc, err := natsconn.Connect(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := nc.Opts.IgnoreDiscoveredServers; got != tc.want {
			t.Errorf("%s: IgnoreDiscoveredServers = %v", tc.name, got)
		}
		nc.Close()
	}
}

func TestTLSIsRequiredWhereACAIsGiven(t *testing.T) {
	cert := testcert.New(t)
	pass := &broker.UserPass{Ops: "o", Data: "d", Device: "v"}
	secure, err := broker.Start(t.Context(), broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), UserPass: pass, TLS: &broker.TLS{CertFile: cert.Cert, KeyFile: cert.Key},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(secure.Close)
	plain := startBroker(t)

	cfg := opsConfig(secure, "o")
	cfg.URLs = []string{"nats://" + secure.Addr().String()}
	cfg.TLS.CA = cert.CA
	nc, err := natsconn.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.TLSConnectionState(); err != nil {
		t.Errorf("the connection is not TLS: %v", err)
	}
	nc.Close()

	for name, change := range map[string]func(*natsconn.Config){
		"server without TLS":          func(c *natsconn.Config) { c.URLs = []string{"nats://" + plain.Addr().String()} },
		"certificate of someone else": func(c *natsconn.Config) { c.TLS.CA = testcert.New(t).CA },
		"CA file missing":             func(c *natsconn.Config) { c.TLS.CA = filepath.Join(t.TempDir(), "absent.pem") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			change(&cfg)
			_, err := natsconn.Connect(t.Context(), cfg)
			var e *command.Error
			if !errors.As(err, &e) || e.Outcome != command.OutcomeFailed {
				t.Fatalf("err = %v", err)
			}
		})
	}
}

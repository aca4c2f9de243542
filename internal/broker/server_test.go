package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testcert"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

var passwords = UserPass{Ops: "ops-secret", Data: "data-secret", Device: "device-secret"}

func testConfig(t *testing.T) Config {
	return Config{Port: AnyPort, StoreDir: t.TempDir(), UserPass: &passwords}
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	srv, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return srv
}

func dial(t *testing.T, url, user, password string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	inbox := command.InboxPrefix(command.UID(user))
	if user == UserDevice {
		inbox = command.DeviceInboxPrefix("d1")
	}
	nc, err := nats.Connect(url, append(opts, nats.UserInfo(user, password), nats.CustomInboxPrefix(inbox))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestAPingCrossesTheAccounts(t *testing.T) {
	srv := start(t, testConfig(t))
	pingAcross(t, srv.ClientURL())
	srv.Close() // again, by Cleanup: nothing happens
}

// pingAcross has the static users ping across the accounts.
func pingAcross(t *testing.T, url string, opts ...nats.Option) {
	t.Helper()
	device := dial(t, url, UserDevice, passwords.Device, opts...)
	_, err := device.Subscribe(command.Subscription("d1"), func(m *nats.Msg) { _ = m.Respond([]byte(m.Header.Get("Nats-Request-Info"))) })
	if err != nil {
		t.Fatal(err)
	}
	if err := device.Flush(); err != nil {
		t.Fatal(err)
	}
	ops := dial(t, url, UserOps, passwords.Ops, opts...)
	m, err := ops.Request(command.Subject("d1", command.VerbPing), nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"acc":"OPS"`, `"user":"ops"`, `"kind":"Client"`} {
		if !strings.Contains(string(m.Data), want) {
			t.Errorf("the device saw %s, want %s in it", m.Data, want)
		}
	}
	if _, err := ops.Request(command.Subject("d9", command.VerbPing), nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("absent device: %v", err)
	}
}

func TestStartFailsAtOnceAndSaysWhy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"port in use", func(c *Config) { c.Port = port }, "choose another one"},
		{"monitoring port in use", func(c *Config) { c.HTTPPort = port }, "in use"},
		{"cluster port in use", func(c *Config) {
			c.Cluster = &Cluster{Name: "c", Port: port, Routes: []string{"nats-route://127.0.0.1:1"}}
		}, "in use"},
		{"store is no directory", func(c *Config) { c.StoreDir = filepath.Join(file, "below") }, "not a directory"},
		{"no such certificate", func(c *Config) { c.TLS = &TLS{CertFile: "absent.crt", KeyFile: "absent.key"} }, "absent.crt"},
		{"no authentication", func(c *Config) { c.UserPass = nil }, "UserPass"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t)
			tt.change(&cfg)
			begin := time.Now()
			srv, err := Start(t.Context(), cfg)
			if err == nil {
				srv.Close()
				t.Fatal("started")
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error %q, want %q", err, tt.want)
			}
		})
	}
}

func TestStartStopsWhenItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if srv, err := Start(ctx, testConfig(t)); !errors.Is(err, context.Canceled) {
		if srv != nil {
			srv.Close()
		}
		t.Fatalf("got %v", err)
	}
}

func TestTheStoreSurvivesARestart(t *testing.T) {
	cfg := testConfig(t)
	srv := start(t, cfg)
	nc := dial(t, srv.ClientURL(), UserData, passwords.Data)
	mustProvision(t, nc, ProvisionOptions{})
	if _, err := nc.Request(command.DesiredStateSubject("d1"), []byte(`{"schema":1}`), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	srv.Close()
	srv = start(t, cfg)
	nc = dial(t, srv.ClientURL(), UserData, passwords.Data)
	for _, c := range mustProvision(t, nc, ProvisionOptions{}) {
		if c.Action != "unchanged" {
			t.Errorf("%+v", c)
		}
	}
	m, err := nc.Request("$JS.API.DIRECT.GET.KV_desired-state.$KV.desired-state.d1", nil, 5*time.Second)
	if err != nil || string(m.Data) != `{"schema":1}` {
		t.Errorf("%v, %v", m, err)
	}
}

func TestTLSIsRequiredWhereConfigured(t *testing.T) {
	cfg := testConfig(t)
	cfg.TLS = testCertificates(t)
	cfg.TLS.VerifyClients = false
	srv := start(t, cfg)
	addr := strings.TrimPrefix(strings.TrimPrefix(srv.ClientURL(), "tls://"), "nats://")
	pingAcross(t, "tls://"+addr, nats.RootCAs(cfg.TLS.CAFile))
	if nc, err := nats.Connect("tls://"+addr, nats.UserInfo(UserOps, passwords.Ops)); err == nil {
		nc.Close()
		t.Error("connected without the CA")
	}
	// A client that speaks no TLS is not let in.
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("CONNECT {\"user\":\"ops\",\"pass\":\"ops-secret\",\"verbose\":true}\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); strings.Contains(string(got), "PONG") || strings.Contains(string(got), "+OK") {
		t.Errorf("plaintext was answered: %q", got)
	}
}

func TestOnlyTheServersOfAClusterJoinIt(t *testing.T) {
	ports := make([]int, 3)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var log syncbuf.Buffer
	join := func(i int, password string, tls *TLS) *Server {
		cfg := testConfig(t)
		cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		cfg.ServerName = fmt.Sprintf("s%d", i)
		cfg.Cluster = &Cluster{Name: "c", Port: ports[i], Password: password, TLS: tls}
		for _, p := range ports {
			cfg.Cluster.Routes = append(cfg.Cluster.Routes, fmt.Sprintf("nats-route://127.0.0.1:%d", p))
		}
		return start(t, cfg)
	}
	tls := testCertificates(t)
	first, second := join(0, "p@ss/word %", tls), join(1, "p@ss/word %", tls)
	join(2, "guess", tls)
	testwait.For(t, 20*time.Second, "a route between the two", func() bool { return first.NumRoutes() > 0 && second.NumRoutes() > 0 })
	testwait.For(t, 20*time.Second, "the refusal of the stranger", func() bool { return strings.Contains(log.String(), "authentication error") })
	// The stranger itself counts a route until it has read that it is refused.
	for _, srv := range []*Server{first, second} {
		routes, err := srv.Routez(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes.Routes {
			if r.RemoteName == "s2" {
				t.Errorf("%s has a route to the stranger", srv.Name())
			}
		}
	}
	for _, secret := range []string{"p@ss", "p%40ss", "ops-secret", "data-secret", "device-secret"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has the password %s", secret)
		}
	}
}

// The rendered text runs a nats-server of its own: the module's main package, as
// pinned in go.mod.
func TestASeparateServerRunsTheRenderedConfiguration(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "nats-server")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := testConfig(t).Render()
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-c", conf, "--ports_file_dir", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	})
	var url string
	testwait.For(t, 20*time.Second, "the server's ports file", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "*.ports"))
		if len(files) == 0 {
			return false
		}
		data, err := os.ReadFile(files[0])
		if err != nil {
			return false
		}
		_, rest, ok := strings.Cut(string(data), `"nats://`)
		addr, _, ok2 := strings.Cut(rest, `"`)
		url = "nats://" + addr
		return ok && ok2
	})
	mustProvision(t, dial(t, url, UserData, passwords.Data), ProvisionOptions{})
	pingAcross(t, url)
}

func testCertificates(t *testing.T) *TLS {
	t.Helper()
	c := testcert.New(t)
	return &TLS{CAFile: c.CA, CertFile: c.Cert, KeyFile: c.Key, VerifyClients: true}
}

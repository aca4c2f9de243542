// Package kubetest runs a real Kubernetes API server for tests: etcd and
// kube-apiserver from the local cluster's binary, on free ports of loopback, with the
// fleet's resource definitions, and nothing else. There are no controllers, so that
// nothing deletes the content of a namespace or what an owner reference ties; and no
// nodes.
//
//	func TestMain(m *testing.M) { kubetest.Main(m) }
//
//	func TestX(t *testing.T) {
//		kube := kubetest.Shared(t) // one for all tests of the package
//		c := kube.Client(t)
//		ns := kube.Namespace(t)
//		…
//	}
//
// Tests that use it are skipped unless HARMONY_FLEET_E2E is 1, as all that need a
// cluster.
package kubetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/rest"

	"github.com/harmony-fleet/fleet/e2e/cluster/local"
)

// gate is the variable without which no test that needs a cluster runs.
const gate = "HARMONY_FLEET_E2E"

// patience bounds a start; with the machine to itself it takes 3 s.
const patience = 2 * time.Minute

// Require skips the test where no cluster is wanted.
func Require(tb testing.TB) {
	tb.Helper()
	if os.Getenv(gate) != "1" {
		tb.Skip("needs an API server, which is built from source once: set " + gate + "=1")
	}
}

// Server is an API server with its etcd.
type Server struct {
	dir   string
	kube  string // the binary
	token string
	ports [3]int // API server, etcd for clients and for peers
	ca    string // who signed the server's certificate

	etcd, api *process
}

var shared struct {
	sync.Mutex
	server *Server
	err    error
}

// Main is for TestMain of a package whose tests use Shared: it ends the server, and
// fails where goroutines are left.
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	server := shared.server
	shared.Unlock()
	if server != nil {
		if err := server.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "kubetest:", err)
			code = max(code, 1)
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "kubetest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Shared gives the server of the package's tests, started for the first of them. The
// package's TestMain must call Main. A test that stops or restarts a server, or
// changes the definitions, takes one of its own from Start.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	Require(tb)
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = start(context.Background())
		if shared.err == nil {
			shared.err = shared.server.InstallCRDs(context.Background())
		}
	}
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.server
}

// Start gives a server for one test, without the fleet's definitions: see
// [Server.InstallCRDs]. It ends with the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	Require(tb)
	s, err := start(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// start tries again where another process took a port between its choice and its use.
func start(ctx context.Context) (*Server, error) {
	kube, err := local.KubeBinary(ctx, local.Options{Progress: os.Stderr})
	if err != nil {
		return nil, fmt.Errorf("kubetest: %w", err)
	}
	for try := 1; ; try++ {
		s, err := startOn(ctx, kube)
		if err == nil || try == 3 || !strings.Contains(err.Error(), "address already in use") {
			return s, err
		}
	}
}

func startOn(ctx context.Context, kube string) (s *Server, err error) {
	dir, err := os.MkdirTemp("", "fleet-kubetest-")
	if err != nil {
		return nil, fmt.Errorf("kubetest: %w", err)
	}
	s = &Server{dir: dir, kube: kube, token: rand.Text(), ca: filepath.Join(dir, "ca.crt")}
	defer func() {
		if err != nil {
			_ = s.stop() // the first error counts
			s, err = nil, fmt.Errorf("kubetest: %w", err)
		}
	}()
	if s.ports, err = freePorts(); err != nil {
		return s, err
	}
	if err = s.writeFiles(); err != nil {
		return s, err
	}
	client, peer := s.url("http", 1), s.url("http", 2)
	if s.etcd, err = run(s.command("etcd", "--name=test", "--data-dir="+filepath.Join(dir, "etcd"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer,
		"--heartbeat-interval=10", "--election-timeout=50", "--unsafe-no-fsync", "--log-level=warn")); err != nil {
		return s, err
	}
	return s, s.startAPI(ctx)
}

func (s *Server) startAPI(ctx context.Context) (err error) {
	file := func(name string) string { return filepath.Join(s.dir, name) }
	cmd := s.command("kube-apiserver", "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", s.ports[0]),
		"--etcd-servers="+s.url("http", 1), "--service-cluster-ip-range=10.213.128.0/18",
		"--authorization-mode=RBAC", "--token-auth-file="+file("tokens.csv"),
		"--tls-cert-file="+file("server.crt"), "--tls-private-key-file="+file("server.key"),
		"--service-account-issuer=https://kubetest", "--service-account-key-file="+file("server.crt"),
		"--service-account-signing-key-file="+file("server.key"),
		"--advertise-address=127.0.0.1", "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--profiling=false")
	cmd.Env = append(cmd.Env, fmt.Sprintf("KUBE_AWAIT=tcp 127.0.0.1:%d", s.ports[1]))
	if s.api, err = run(cmd); err != nil {
		return err
	}
	return s.awaitReady(ctx)
}

// StopAPI ends the API server and keeps what it stored, until StartAPI.
func (s *Server) StopAPI() { s.api.Kill() }

// StartAPI starts it again, on the same port, and waits until it is ready.
func (s *Server) StartAPI(tb testing.TB) {
	tb.Helper()
	if err := s.startAPI(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

func (s *Server) stop() error {
	for _, p := range []*process{s.api, s.etcd} {
		if p != nil {
			p.Kill()
		}
	}
	return os.RemoveAll(s.dir)
}

// Config is how the administrator reaches the server. To be another user, set
// Impersonate; requests are not throttled.
func (s *Server) Config() *rest.Config {
	return &rest.Config{
		Host: s.url("https", 0), BearerToken: s.token, TLSClientConfig: rest.TLSClientConfig{CAFile: s.ca},
		QPS: -1, Timeout: 30 * time.Second,
	}
}

// Kubeconfig writes a kubeconfig file for the administrator and returns its path. It
// goes with the server.
func (s *Server) Kubeconfig(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(s.dir, "kubeconfig")
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: test, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
`, s.url("https", 0), s.ca, s.token)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func (s *Server) url(scheme string, port int) string {
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, s.ports[port])
}

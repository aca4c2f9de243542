package kubetest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/harmony-fleet/fleet/internal/childproc"
	"github.com/harmony-fleet/fleet/internal/pki"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
)

// process is a component that runs until it is killed, or the test is.
type process struct {
	*childproc.Process
	output *syncbuf.Buffer // the last of what it writes
}

const tailSize = 16 << 10 // bytes

func (s *Server) command(component string, args ...string) *exec.Cmd {
	cmd := exec.Command(s.kube, append([]string{component}, args...)...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.dir, "GOGC=200"}
	return cmd
}

func run(cmd *exec.Cmd) (*process, error) {
	output := &syncbuf.Buffer{Max: tailSize}
	cmd.Stdout, cmd.Stderr = output, output
	p, err := childproc.Start(cmd)
	if err != nil {
		return nil, err
	}
	return &process{p, output}, nil
}

// String is the end of its output.
func (p *process) String() string { return strings.TrimSpace(p.output.String()) }

// awaitReady returns when the API server says that it is ready.
func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := rest.HTTPClientFor(s.Config())
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url("https", 0)+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := client.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.api.Ended():
			return fmt.Errorf("kube-apiserver ended: %s", s.api)
		case <-s.etcd.Ended():
			return fmt.Errorf("etcd ended: %s", s.etcd)
		case <-ctx.Done():
			return fmt.Errorf("the API server is not ready: %w: %s", context.Cause(ctx), s.api)
		case <-tick.C:
		}
	}
}

func freePorts() (ports [3]int, err error) {
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return ports, err
		}
		defer l.Close() // all at once, so that they differ
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// writeFiles makes what the API server reads: its certificate and key, which signs
// ServiceAccount tokens too, and the administrator's token; and who signed the
// certificate, for clients.
func (s *Server) writeFiles() error {
	ca, err := pki.New("kubetest", 24*time.Hour)
	if err != nil {
		return err
	}
	pair, err := ca.Issue(pki.Request{Hosts: []string{"127.0.0.1"}})
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		s.ca:                               ca.CertPEM(),
		filepath.Join(s.dir, "server.crt"): pair.Cert,
		filepath.Join(s.dir, "server.key"): pair.Key,
		filepath.Join(s.dir, "tokens.csv"): []byte(s.token + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

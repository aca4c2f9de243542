package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

const patience = 30 * time.Second

func TestUsageAndExitCodes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := "[credentials]\ntype = 'kubernetes'\n[kubernetes]\nnamespace = 'fleet'\n"
	broken, valid := write("broken.toml", "provison = true\n"), write("valid.toml", good)
	outside := write("outside.toml", good+"kubeconfig = '"+dir+"/none'\n")
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--version"}, 0, "fleet-operator"},
		{[]string{"--help"}, 0, "--config"},
		{nil, 2, "--config is needed"},
		{[]string{"--wat"}, 2, "wat"},
		{[]string{"--config", valid, "more"}, 2, "unexpected"},
		{[]string{"--config", dir + "/nothing"}, 2, "no such file"},
		{[]string{"--config", broken}, 2, `line 1: unknown key "provison"`},
		{[]string{"--config", valid, "--check"}, 0, "is valid"},
		{[]string{"--config", outside}, 2, "kubernetes.kubeconfig"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v: exit code %d, want %d; output:\n%s", tt.args, code, tt.code, &out)
		}
	}
}

// The program with a real API server and no broker runs, says so, and ends well.
func TestItRunsWithoutABrokerAndSaysSo(t *testing.T) {
	kube := kubetest.Shared(t)
	ns := kube.Namespace(t)
	ports := make([]int, 2)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
		if i == 1 { // the broker's is taken by somebody who says nothing
			break
		}
		l.Close()
	}
	const secret = "hunter2-of-the-operator"
	file := filepath.Join(t.TempDir(), "operator.toml")
	text := fmt.Sprintf(`
[nats]
url = "nats://127.0.0.1:%d"
[credentials]
type = "shared"
user = "data"
password = %q
[kubernetes]
kubeconfig = %q
namespace = %q
[metrics]
listen = "off"
[health]
listen = "127.0.0.1:%d"
[log]
level = "debug"
`, ports[1], secret, kube.Kubeconfig(t), ns, ports[0])
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	code := make(chan int, 1)
	go func() { code <- run(ctx, []string{"--config", file}, io.Discard, &out) }()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	testwait.For(t, patience, "/readyz to say what is missing", func() bool {
		response, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", ports[0]))
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(body), "not connected to NATS")
	})
	cancel()
	select {
	case got := <-code:
		if got != 0 {
			t.Errorf("exit code %d", got)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if strings.Contains(out.String(), secret) || !strings.Contains(out.String(), "the broker does not answer yet") {
		t.Errorf("log:\n%s", &out)
	}
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/syncbuf"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// asCallout makes the test binary be fleet-callout, so that a test can kill a real one.
const asCallout = "FLEET_TEST_AS_CALLOUT"

func TestMain(m *testing.M) {
	if os.Getenv(asCallout) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestUsageAndExitCodes(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken.toml")
	os.WriteFile(broken, []byte("wrokers = 1\n"), 0o600)
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--version"}, 0, "fleet-callout"},
		{[]string{"--help"}, 0, "--config"},
		{nil, 2, "--config is needed"},
		{[]string{"--wat"}, 2, "wat"},
		{[]string{"--config", broken, "more"}, 2, "unexpected"},
		{[]string{"--config", dir + "/none"}, 2, "no such file"},
		{[]string{"--config", broken}, 2, `line 1: unknown key "wrokers"`},
		{[]string{"keygen"}, 2, "--dir"},
		{[]string{"keygen", "--dir", dir + "/keys"}, 0, `issuer = "A`},
		{[]string{"keygen", "--dir", dir + "/keys"}, 1, "exists"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v: exit code %d, want %d; output:\n%s", tt.args, code, tt.code, &out)
		}
	}
}

func TestKilledCalloutComesBack(t *testing.T) {
	dir := t.TempDir()
	var keys bytes.Buffer
	if code := run(t.Context(), []string{"keygen", "--dir", dir}, &keys, io.Discard); code != 0 {
		t.Fatal(keys.String())
	}
	var issuerKey, xkey string
	if _, err := fmt.Sscanf(keys.String(), "issuer = %q\nxkey = %q", &issuerKey, &xkey); err != nil {
		t.Fatal(err)
	}
	srv, err := broker.Start(t.Context(), broker.Config{Port: broker.AnyPort, StoreDir: t.TempDir(),
		Callout: &broker.Callout{Issuer: issuerKey, XKey: xkey, Password: "pw-of-the-callout"}})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	idp, err := issuer.Start(context.Background(), issuer.Options{Users: []issuer.User{{Name: "viewer", Roles: []string{"fleet-viewer"}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.Close()
	token, err := idp.Mint("viewer", issuer.MintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "callout.toml")
	text := fmt.Sprintf(`listen = "127.0.0.1:0"
[nats]
url = %q
password = "pw-of-the-callout"
[signing]
issuer_seed_file = %q
xkey_seed_file = %q
[[issuers]]
url = %q
audience = %[5]q
project_id = %[5]q
roles = ["fleet-viewer"]
`, srv.ClientURL(), dir+"/issuer.seed", dir+"/xkey.seed", idp.URL(), idp.ProjectID())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"--config", config, "--check"}, &out, &out); code != 0 || !strings.Contains(out.String(), issuerKey) {
		t.Fatalf("--check: %d %s", code, &out)
	}

	start := func() (*exec.Cmd, *syncbuf.Buffer) {
		cmd := exec.Command(os.Args[0], "--config", config)
		l := &syncbuf.Buffer{}
		cmd.Env, cmd.Stderr = append(os.Environ(), asCallout+"=1"), l
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		testwait.For(t, 15*time.Second, "ready", func() bool { return strings.Contains(l.String(), "msg=\"ready") })
		return cmd, l
	}
	first, _ := start()
	nc, err := nats.Connect(srv.ClientURL(), nats.Token(token))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := first.Process.Kill(); err != nil { // SIGKILL
		t.Fatal(err)
	}
	_ = first.Wait()
	if _, err := nats.Connect(srv.ClientURL(), nats.Token(token), nats.Timeout(5*time.Second)); err == nil {
		t.Fatal("let in without a callout")
	}
	if nc.IsClosed() || nc.IsReconnecting() {
		t.Error("a client was disconnected because the callout was killed")
	}
	second, l := start()
	again, err := nats.Connect(srv.ClientURL(), nats.Token(token))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()

	stopped := time.Now()
	if err := second.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("exit after Ctrl-C: %v\n%s", err, l)
	}
	if d := time.Since(stopped); d > 2*time.Second {
		t.Errorf("the stop took %v", d)
	}
	if strings.Contains(l.String(), "pw-of") || strings.Contains(l.String(), token[len(token)-20:]) {
		t.Error("a secret is in the log")
	}
	http.DefaultClient.CloseIdleConnections()
}

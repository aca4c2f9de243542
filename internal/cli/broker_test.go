package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

func TestABrokerOfOnesOwn(t *testing.T) {
	h := newHome(t)
	dir := filepath.Join(t.TempDir(), "secrets")
	first := h.fleet("broker", "secrets", "--dir", dir, "--host", "nats.example")
	if first.code != 0 || strings.Count(first.stdout, "\n") != 12 || !strings.Contains(first.stdout, "ca.pem\n") {
		t.Fatalf("secrets: %s", first)
	}
	if o := h.fleet("broker", "secrets", "--dir", dir, "--host", "nats.example", "-o", "json"); o.code != 0 || o.stdout != `{"made":[]}`+"\n" {
		t.Errorf("again: %s", o)
	}
	for _, auth := range []string{"callout", "userpass"} {
		out := filepath.Join(t.TempDir(), "nats.conf")
		if o := h.fleet("broker", "config", "--secrets", dir, "--auth", auth, "--out", out, "--store-dir", "/data", "--server-name", "nats-0",
			"--listen", "0.0.0.0:4222", "--cluster-listen", "0.0.0.0:6222", "--route", "nats-route://nats-0:6222,nats-route://nats-1:6222"); o.code != 0 || o.stdout != "" {
			t.Fatalf("config: %s", o)
		}
		info, err := os.Stat(out)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		opts, err := server.ProcessConfigFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if opts.ServerName != "nats-0" || opts.StoreDir != "/data" || opts.TLSConfig == nil || len(opts.Routes) != 2 || (opts.AuthCallout != nil) != (auth == "callout") {
			t.Errorf("%s: server %s, store %s, routes %v, callout %v", auth, opts.ServerName, opts.StoreDir, opts.Routes, opts.AuthCallout)
		}
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"secrets", "--host", "x"}, "--dir DIR or --kubernetes-secret NAME"},
		{[]string{"secrets", "--dir", dir, "--kubernetes-secret", "x", "--host", "x"}, "--dir DIR or --kubernetes-secret NAME"},
		{[]string{"secrets", "--dir", dir}, "--host"},
		{[]string{"config", "--secrets", dir}, "--out FILE"},
		{[]string{"config", "--secrets", dir, "--out", "-", "--auth", "none"}, `"none"`},
		{[]string{"config", "--secrets", dir, "--out", "-", "--listen", "4222"}, "--listen"},
		{[]string{"config", "--secrets", t.TempDir(), "--out", "-"}, "fleet broker secrets"},
	} {
		if o := h.fleet(append([]string{"broker"}, tt.args...)...); o.code != 2 || !strings.Contains(o.stderr, tt.want) || o.stdout != "" {
			t.Errorf("%v: %s, want %q", tt.args, o, tt.want)
		}
	}
}

package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const signIn = "[credentials]\ntype = 'kubernetes'\n"

func TestDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "namespace")
	if err := os.WriteFile(file, []byte("fleet\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Parse([]byte(signIn), file)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kubernetes.Namespace != "fleet" || !slices.Equal(c.Kubernetes.Namespaces, []string{"fleet"}) || !*c.Kubernetes.LeaderElection ||
		c.Metrics.Listen != ":8080" || c.Health.Listen != ":8081" || c.Provision {
		t.Errorf("%+v", c)
	}
}

func TestEveryKeyIsRead(t *testing.T) {
	c, err := Parse([]byte(`
provision = true
[streams]
replicas = 3
audit_per_subject = 10
audit_max_age = "24h"
[nats]
url = ["tls://a:4222", "tls://b:4222"]
insecure = true
tls = { ca = "ca.pem", cert = "c.pem", key = "k.pem" }
[credentials]
type = "token-file"
token_file = "/token"
[kubernetes]
kubeconfig = "/kubeconfig"
namespace = "fleet"
namespaces = ["shop", "lab"]
leader_election = false
[metrics]
listen = "127.0.0.1:9000"
[health]
listen = "off"
[log]
level = "debug"
format = "json"
`), "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Streams.Replicas != 3 || len(c.NATS.URL) != 2 || len(c.Kubernetes.Namespaces) != 2 || *c.Kubernetes.LeaderElection || c.Health.Listen != "off" {
		t.Errorf("%+v", c)
	}
}

func TestFaultsNameTheKey(t *testing.T) {
	const ns = "[kubernetes]\nnamespace = 'fleet'\n"
	for _, tc := range []struct{ name, text, want string }{
		{"no namespace", signIn, "kubernetes.namespace"},
		{"bad namespace", signIn + "[kubernetes]\nnamespace = 'A'", "kubernetes.namespace"},
		{"bad namespaces", signIn + "[kubernetes]\nnamespace = 'a'\nnamespaces = ['a.b']", `"a.b"`},
		{"no credentials", ns, "[credentials] type"},
		{"plaintext", signIn + ns + "[nats]\nurl = 'nats://example.com'", "nats.url"},
		{"half a certificate", signIn + ns + "[nats]\ntls = {cert = 'x'}", "nats.tls"},
		{"streams without provision", signIn + ns + "[streams]\nreplicas = 3", "provision = true"},
		{"replicas", "provision = true\n" + signIn + ns + "[streams]\nreplicas = 9", "streams.replicas"},
		{"listen", signIn + ns + "[metrics]\nlisten = '8080'", "metrics.listen"},
		{"one address", signIn + ns + "[metrics]\nlisten = ':8081'", "health.listen"},
		{"level", signIn + ns + "[log]\nlevel = 'loud'", "log.level"},
		{"unknown key", signIn + ns + "namespce = 'x'", "namespce"},
	} {
		if _, err := Parse([]byte(tc.text), "/nowhere"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
}

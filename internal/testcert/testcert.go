// Package testcert writes certificates for tests.
package testcert

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/pki"
)

// Files are the paths of PEM files.
type Files struct {
	CA   string // of the authority that signed Cert
	Cert string
	Key  string
}

// New writes a certificate for a server at hosts, or 127.0.0.1 where none are given,
// and for a client. It is valid for an hour, of an authority that has signed no other.
func New(t testing.TB, hosts ...string) Files {
	t.Helper()
	if len(hosts) == 0 {
		hosts = []string{"127.0.0.1"}
	}
	ca, err := pki.New("test authority", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Request{Hosts: hosts, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return Files{CA: write("ca.crt", ca.CertPEM()), Cert: write("tls.crt", pair.Cert), Key: write("tls.key", pair.Key)}
}

package stack

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
	"github.com/harmony-fleet/fleet/internal/pki"
)

// tlsFiles are PEM files of a generated authority and of the one certificate it
// signed, which broker and issuer share.
type tlsFiles struct {
	ca, cert, key string
}

// certLifetime is that of the generated certificates; they are made anew when
// less than half of it is left.
const certLifetime = 365 * 24 * time.Hour

// makeTLS gives the files of dir/tls, made where they are missing or old.
func (d *directory) makeTLS() (tlsFiles, error) {
	if _, err := d.sub("tls"); err != nil {
		return tlsFiles{}, err
	}
	f := tlsFiles{ca: d.join("tls", "ca.pem"), cert: d.join("tls", "server.pem"), key: d.join("tls", "server.key")}
	if f.fresh() {
		return f, nil
	}
	ca, err := pki.New("Harmony Fleet local authority", certLifetime)
	if err != nil {
		return f, err
	}
	pair, err := ca.Issue(pki.Request{Hosts: []string{"localhost", "127.0.0.1", "::1"}})
	if err != nil {
		return f, err
	}
	for path, content := range map[string][]byte{f.ca: ca.CertPEM(), f.cert: pair.Cert, f.key: pair.Key} {
		if err := atomicfile.Write(path, content); err != nil {
			return f, fmt.Errorf("write certificate: %w", err)
		}
	}
	return f, nil
}

// fresh tells whether all files are there and the certificate is good for a
// while.
func (f tlsFiles) fresh() bool {
	for _, name := range []string{f.ca, f.key} {
		if _, err := os.Stat(name); err != nil {
			return false
		}
	}
	raw, err := os.ReadFile(f.cert)
	if err != nil {
		return false
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	return err == nil && time.Until(cert.NotAfter) > certLifetime/2
}

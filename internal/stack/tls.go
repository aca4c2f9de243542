package stack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
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
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Harmony Fleet local authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return f, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return f, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return f, err
	}
	return f, errors.Join(
		writePEM(f.ca, "CERTIFICATE", caDER), writePEM(f.cert, "CERTIFICATE", leafDER), writePEM(f.key, "PRIVATE KEY", keyDER))
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

func writePEM(path, kind string, der []byte) error {
	if err := atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return n
}

// Package pki makes certificate authorities and the certificates that they sign, for
// what brings servers of its own up: a fleet on one machine, a stack in a cluster, the
// cluster itself, and tests.
//
//	ca, err := pki.New("Harmony Fleet e2e-0a1b2c3d", 30*24*time.Hour)
//	…
//	pair, err := ca.Issue(pki.Request{Hosts: []string{"nats", "10.96.0.7"}})
//
// Keys are ECDSA P-256: one is made in microseconds where RSA takes a tenth of a second.
package pki

import (
	"crypto"
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
	"time"
)

// Authority signs certificates.
type Authority struct {
	cert     *x509.Certificate
	key      crypto.Signer
	certPEM  []byte
	lifetime time.Duration
}

// New makes an authority of its own, which is valid for lifetime, as is all that it
// signs.
func New(commonName string, lifetime time.Duration) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := template(pkix.Name{CommonName: commonName}, time.Now(), lifetime)
	if err != nil {
		return nil, err
	}
	cert.IsCA, cert.BasicConstraintsValid = true, true
	cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %q: %w", commonName, err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse authority %q: %w", commonName, err)
	}
	return &Authority{cert: cert, key: key, certPEM: encode("CERTIFICATE", der), lifetime: lifetime}, nil
}

// Load gives an authority that was made before, which signs certificates of that
// lifetime. An error is of the certificate or of the key: [ParseCertificate] and
// [ParseKey] tell which.
func Load(certPEM, keyPEM []byte, lifetime time.Duration) (*Authority, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := ParseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	return &Authority{cert: cert, key: key, certPEM: certPEM, lifetime: lifetime}, nil
}

// CertPEM is the authority's certificate, for whoever is to trust it.
func (a *Authority) CertPEM() []byte { return a.certPEM }

// KeyPEM is the authority's private key.
func (a *Authority) KeyPEM() ([]byte, error) { return EncodeKey(a.key) }

// Request says what a certificate is for.
type Request struct {
	// Subject is whom it names. Zero: the first of Hosts, as the common name.
	Subject pkix.Name
	// Hosts are the names and addresses that a server is called by. None: it serves no
	// server.
	Hosts []string
	// Client says that it identifies a client.
	Client bool
	// Now is when it is made. Zero: now.
	Now time.Time
}

// Pair is a certificate and its private key, both PEM.
type Pair struct{ Cert, Key []byte }

// String and GoString keep the key out of messages.
func (Pair) String() string   { return "certificate and key(redacted)" }
func (Pair) GoString() string { return "certificate and key(redacted)" }

// Issue makes a key, and signs a certificate of it.
func (a *Authority) Issue(r Request) (Pair, error) {
	if r.Subject.CommonName == "" && len(r.Hosts) > 0 {
		r.Subject.CommonName = r.Hosts[0]
	}
	if len(r.Hosts) == 0 && !r.Client { // without a use named it would serve for any
		return Pair{}, fmt.Errorf("certificate of %q: neither a server's nor a client's: name its hosts, or set Client", r.Subject.CommonName)
	}
	key, err := NewKey()
	if err != nil {
		return Pair{}, err
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	cert, err := template(r.Subject, r.Now, a.lifetime)
	if err != nil {
		return Pair{}, err
	}
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	if len(r.Hosts) > 0 {
		cert.ExtKeyUsage = append(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		cert.ExtKeyUsage = append(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	cert.DNSNames, cert.IPAddresses = Split(r.Hosts)
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate of %q: %w", r.Subject.CommonName, err)
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: encode("CERTIFICATE", der), Key: keyPEM}, nil
}

// Split tells the names among hosts from the addresses.
func Split(hosts []string) (names []string, addresses []net.IP) {
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, host)
		}
	}
	return names, addresses
}

// template is what all certificates have in common.
func template(subject pkix.Name, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		// Other machines' clocks may differ, and this one's may be set back.
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
	}, nil
}

// NewKey makes a private key.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return key, nil
}

// EncodeKey is a private key in PEM, PKCS #8.
func EncodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return encode("PRIVATE KEY", der), nil
}

// EncodePublicKey is a public key in PEM, PKIX.
func EncodePublicKey(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return encode("PUBLIC KEY", der), nil
}

// ParseCertificate reads a certificate in PEM.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// ParseKey reads a private key in PEM, PKCS #8. An error tells nothing of it.
func ParseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("no PKCS #8 key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("no key that signs")
	}
	return signer, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

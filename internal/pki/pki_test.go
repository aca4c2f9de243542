package pki

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestCertificatesServeWhatTheyWereIssuedFor(t *testing.T) {
	const lifetime = 2 * time.Hour
	ca, err := New("ours", lifetime)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := New("ours", lifetime) // of the same name
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		request        Request
		common         string
		hosts, not     []string
		server, client bool
	}{
		"server":         {request: Request{Hosts: []string{"nats", "10.1.2.3", "::1"}}, common: "nats", hosts: []string{"nats", "10.1.2.3", "::1"}, not: []string{"other", "10.1.2.4"}, server: true},
		"server by name": {request: Request{Subject: pkix.Name{CommonName: "api"}, Hosts: []string{"localhost"}}, common: "api", hosts: []string{"localhost"}, not: []string{"api"}, server: true},
		"client":         {request: Request{Subject: pkix.Name{CommonName: "admin", Organization: []string{"masters"}}, Client: true}, common: "admin", not: []string{"admin"}, client: true},
		"both":           {request: Request{Hosts: []string{"127.0.0.1"}, Client: true}, common: "127.0.0.1", hosts: []string{"127.0.0.1"}, server: true, client: true},
	} {
		t.Run(name, func(t *testing.T) {
			issued, err := ca.Issue(test.request)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(issued.Cert, issued.Key)
			if err != nil {
				t.Fatal(err)
			}
			leaf := pair.Leaf
			if leaf.Subject.CommonName != test.common || leaf.IsCA {
				t.Errorf("it names %q, an authority: %v", leaf.Subject.CommonName, leaf.IsCA)
			}
			if left := time.Until(leaf.NotAfter); left > lifetime || left < lifetime-time.Minute {
				t.Errorf("it is valid for %v", left)
			}
			for use, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageServerAuth: test.server, x509.ExtKeyUsageClientAuth: test.client} {
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool(ca), KeyUsages: []x509.ExtKeyUsage{use}}); (err == nil) != want {
					t.Errorf("use %v: %v", use, err)
				}
			}
			for _, host := range test.hosts {
				if err := leaf.VerifyHostname(host); err != nil {
					t.Error(err)
				}
			}
			for _, host := range test.not {
				if leaf.VerifyHostname(host) == nil {
					t.Errorf("it serves %s as well", host)
				}
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool(stranger), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
				t.Error("another authority of the same name vouches for it")
			}
		})
	}
}

func TestCertificateForNoUseIsRefused(t *testing.T) {
	ca, err := New("ours", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(Request{Subject: pkix.Name{CommonName: "nobody"}}); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("got %v", err)
	}
}

func TestKeysGoWithTheirCertificates(t *testing.T) {
	ca, err := New("ours", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(ca.CertPEM(), key); err != nil {
		t.Error(err)
	}
	if _, err := EncodeKey("no key"); err == nil {
		t.Error("a text was encoded as a private key")
	}
	if _, err := EncodePublicKey("no key"); err == nil {
		t.Error("a text was encoded as a public key")
	}
	public, err := EncodePublicKey(ca.key.Public())
	if err != nil || !strings.HasPrefix(string(public), "-----BEGIN PUBLIC KEY-----\n") {
		t.Errorf("%s, %v", public, err)
	}
}

func TestMessagesHoldNoKey(t *testing.T) {
	pair := Pair{Cert: []byte("CERT"), Key: []byte("SECRET")}
	for _, form := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(form, pair); strings.Contains(text, "SECRET") || strings.Contains(text, "83 69") {
			t.Errorf("%s: %s", form, text)
		}
	}
}

func pool(a *Authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(a.CertPEM())
	return p
}

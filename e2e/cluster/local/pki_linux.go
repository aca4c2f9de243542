package local

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certLifetime is that of every certificate: no cluster lives that long, since a
// restart of the machine ends it.
const certLifetime = 10 * 365 * 24 * time.Hour

// authority signs the certificates of one cluster. It lives as long as its start:
// its key is written once, for the controller that signs CSRs.
type authority struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	certPEM []byte
}

func newAuthority(commonName string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of authority %s: %w", commonName, err)
	}
	template, err := certTemplate(pkix.Name{CommonName: commonName})
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", commonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse authority %s: %w", commonName, err)
	}
	return &authority{cert: cert, key: key, certPEM: pemBlock("CERTIFICATE", der)}, nil
}

func certTemplate(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour), // a clock that is set back must not lock us out
		NotAfter:     now.Add(certLifetime),
	}, nil
}

// keyPair is a certificate with its key, both PEM.
type keyPair struct{ cert, key []byte }

// issue signs a certificate for subject that serves hosts and addrs, or for
// clients where both are empty.
func (a *authority) issue(subject pkix.Name, hosts []string, addrs []net.IP) (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, fmt.Errorf("generate key of %s: %w", subject.CommonName, err)
	}
	template, err := certTemplate(subject)
	if err != nil {
		return keyPair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(hosts)+len(addrs) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.DNSNames, template.IPAddresses = hosts, addrs
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return keyPair{}, fmt.Errorf("sign certificate of %s: %w", subject.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{cert: pemBlock("CERTIFICATE", der), key: keyPEM}, nil
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pemBlock("PRIVATE KEY", der), nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// masters is the group that may do everything.
const masters = "system:masters"

// client names who a component is to the API server.
type client struct{ user, group string }

// writePKI makes every certificate, key and kubeconfig that the cluster needs and
// writes them under dir/pki and dir/kubeconfigs, and the administrator's kubeconfig
// to dir/kubeconfig. Nobody but root may read any of them.
func writePKI(dir, name string, at addresses) error {
	ca, err := newAuthority("harmony-fleet-" + name)
	if err != nil {
		return err
	}
	proxyCA, err := newAuthority("harmony-fleet-" + name + "-front-proxy")
	if err != nil {
		return err
	}
	caKey, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate key of service accounts: %w", err)
	}
	accountsKey, err := encodeKey(accounts)
	if err != nil {
		return err
	}
	accountsPublic, err := x509.MarshalPKIXPublicKey(accounts.Public())
	if err != nil {
		return fmt.Errorf("encode public key: %w", err)
	}
	files := map[string][]byte{
		"pki/ca.crt":             ca.certPEM,
		"pki/ca.key":             caKey,
		"pki/front-proxy-ca.crt": proxyCA.certPEM,
		"pki/sa.key":             accountsKey,
		"pki/sa.pub":             pemBlock("PUBLIC KEY", accountsPublic),
	}

	apiHosts := []string{"localhost", name, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain}
	for _, c := range []struct {
		file    string
		by      *authority
		subject pkix.Name
		hosts   []string
		addrs   []net.IP
	}{
		{"apiserver", ca, pkix.Name{CommonName: "kube-apiserver"}, apiHosts, ips("127.0.0.1", at.Node.String(), at.API.String())},
		{"kubelet", ca, pkix.Name{CommonName: "system:node:" + name}, []string{name}, ips(at.Node.String())},
		{"apiserver-kubelet", ca, pkix.Name{CommonName: "kube-apiserver", Organization: []string{masters}}, nil, nil},
		{"front-proxy", proxyCA, pkix.Name{CommonName: "front-proxy-client"}, nil, nil},
	} {
		pair, err := c.by.issue(c.subject, c.hosts, c.addrs)
		if err != nil {
			return err
		}
		files["pki/"+c.file+".crt"], files["pki/"+c.file+".key"] = pair.cert, pair.key
	}

	// Everything but the kubelet is of the group that is authorized without any rule:
	// components need not wait until the API server has made the rules for them. They
	// could read the authority's key as well, being root on the same machine.
	for file, who := range map[string]client{
		"kubeconfig":                          {"admin", masters},
		"kubeconfigs/kube-controller-manager": {"system:kube-controller-manager", masters},
		"kubeconfigs/kube-scheduler":          {"system:kube-scheduler", masters},
		"kubeconfigs/kube-proxy":              {"system:kube-proxy", masters},
		"kubeconfigs/coredns":                 {"system:coredns", masters},
		"kubeconfigs/kubelet":                 {"system:node:" + name, "system:nodes"},
	} {
		pair, err := ca.issue(pkix.Name{CommonName: who.user, Organization: []string{who.group}}, nil, nil)
		if err != nil {
			return err
		}
		server := fmt.Sprintf("https://%s:%d", at.Node, apiPort)
		if files[file], err = kubeconfig(name, server, ca.certPEM, pair); err != nil {
			return err
		}
	}

	for file, content := range files {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
	}
	return nil
}

func ips(addrs ...string) []net.IP {
	out := make([]net.IP, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, net.ParseIP(a))
	}
	return out
}

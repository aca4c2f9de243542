// Package brokersetup makes and keeps what a broker of one's own needs beside its
// program: passwords, the callout's seeds, an authority and a server certificate. They
// are files in one directory, or keys of one Kubernetes Secret, by the same names:
//
//	changed, err := brokersetup.Complete(files, brokersetup.Options{Hosts: []string{"nats.fleet.svc"}})
//	cfg, err := brokersetup.Config(files, "/etc/fleet-secrets", broker.Config{…})
//
// What is there stays: whoever signs in uses it. Only the server's certificate is made
// anew, by the same authority, when it nears its end or is to have another name.
package brokersetup

import (
	"bytes"
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
	"path"
	"slices"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
)

// Names of the files. The seeds are callout.IssuerSeedFile and callout.XKeySeedFile.
const (
	FileCA     = "ca.pem"  // who signs the server's certificate
	FileCAKey  = "ca.key"  // needed to make the next certificate, and for nothing else
	FileCert   = "tls.crt" // of the server
	FileKey    = "tls.key"
	passSuffix = ".password"
)

// FilePassword is the file with the password of a static user, or of "cluster".
func FilePassword(user string) string { return user + passSuffix }

// userCluster is the name under which servers of a cluster know each other.
const userCluster = "cluster"

// Lifetimes. The certificate is made anew in its last third.
const (
	caLife   = 20 * 365 * 24 * time.Hour
	certLife = 365 * 24 * time.Hour
)

// Options say what Complete makes.
type Options struct {
	// Hosts are the names and addresses under which the broker is called; at least one.
	// A name may begin with "*.".
	Hosts []string
	// Now is the time. Default: now.
	Now time.Time
}

// Complete adds to files what is missing and gives the names of what it wrote. A file
// that is there and cannot be read as what it is to be is an error that names it.
func Complete(files map[string][]byte, o Options) (changed []string, err error) {
	if len(o.Hosts) == 0 {
		return nil, errors.New("a broker's certificate needs at least one host name")
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	put := func(name string, content []byte) {
		files[name] = content
		changed = append(changed, name)
	}
	for _, user := range []string{broker.UserOps, broker.UserData, broker.UserDevice, broker.UserCallout, broker.UserSystem, userCluster} {
		if len(files[FilePassword(user)]) == 0 {
			put(FilePassword(user), []byte(rand.Text()))
		}
	}
	if len(files[callout.IssuerSeedFile]) == 0 && len(files[callout.XKeySeedFile]) == 0 {
		seeds, err := callout.NewSeeds()
		if err != nil {
			return nil, fmt.Errorf("make the callout's seeds: %w", err)
		}
		put(callout.IssuerSeedFile, seeds.Issuer)
		put(callout.XKeySeedFile, seeds.XKey)
	}
	if _, err := seedsOf(files).Public(); err != nil {
		return nil, err
	}
	if len(files[FileCert]) > 0 && len(files[FileCAKey]) == 0 {
		return changed, nil // somebody else's, who renews it
	}
	if len(files[FileCAKey]) == 0 {
		cert, key, err := newAuthority(o.Now)
		if err != nil {
			return nil, err
		}
		put(FileCA, cert)
		put(FileCAKey, key)
		delete(files, FileCert)
	}
	ok, err := good(files[FileCert], o)
	if err != nil {
		return nil, err
	}
	if !ok {
		cert, key, err := newCertificate(files, o)
		if err != nil {
			return nil, err
		}
		put(FileCert, cert)
		put(FileKey, key)
	}
	return changed, nil
}

func seedsOf(files map[string][]byte) callout.Seeds {
	return callout.Seeds{Issuer: files[callout.IssuerSeedFile], XKey: files[callout.XKeySeedFile]}
}

// good tells whether the certificate has the names and two thirds of its life are not over.
func good(cert []byte, o Options) (bool, error) {
	if len(cert) == 0 {
		return false, nil
	}
	parsed, err := parse(FileCert, cert)
	if err != nil {
		return false, err
	}
	names, addresses := split(o.Hosts)
	same := slices.Equal(names, parsed.DNSNames) && slices.EqualFunc(addresses, parsed.IPAddresses, net.IP.Equal)
	return same && parsed.NotAfter.Sub(o.Now) > certLife/3, nil
}

func split(hosts []string) (names []string, addresses []net.IP) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, h)
		}
	}
	return names, addresses
}

func parse(name string, raw []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM certificate: put one there, or remove it and %s to have new ones", name, FileCAKey)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

func template(name string, now time.Time, life time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		// Clocks of nodes and devices may differ from this machine's.
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
	}
}

func newAuthority(now time.Time) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make an authority: %w", err)
	}
	ca := template("Harmony Fleet broker authority", now, caLife)
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	return encode(ca, ca, private, private)
}

func newCertificate(files map[string][]byte, o Options) (cert, key []byte, err error) {
	ca, err := parse(FileCA, files[FileCA])
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(files[FileCAKey])
	if block == nil {
		return nil, nil, fmt.Errorf("%s holds no PEM key", FileCAKey)
	}
	signer, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: not a PKCS #8 key", FileCAKey)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	leaf := template("nats", o.Now, certLife)
	leaf.DNSNames, leaf.IPAddresses = split(o.Hosts)
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	// Servers of a cluster show it to each other, both ways.
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return encode(leaf, ca, private, signer)
}

func encode(cert, parent *x509.Certificate, private *ecdsa.PrivateKey, signer any) (certPEM, keyPEM []byte, err error) {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &private.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), nil
}

// Config fills cfg with what files hold, for a server that finds them in dir: its
// certificate, the passwords, and with auth "callout" the callout's public keys, or with
// "userpass" the static users. cfg.Cluster, if set, gets the password and certificate
// too.
func Config(files map[string][]byte, dir, auth string, cfg broker.Config) (broker.Config, error) {
	var missing []string
	text := func(name string) string {
		v := string(bytes.TrimSpace(files[name]))
		if v == "" {
			missing = append(missing, name)
		}
		return v
	}
	text(FileCert)
	text(FileKey)
	cfg.TLS = &broker.TLS{CertFile: path.Join(dir, FileCert), KeyFile: path.Join(dir, FileKey)}
	cfg.SystemPassword = text(FilePassword(broker.UserSystem))
	switch auth {
	case "userpass":
		cfg.UserPass = &broker.UserPass{
			Ops: text(FilePassword(broker.UserOps)), Data: text(FilePassword(broker.UserData)), Device: text(FilePassword(broker.UserDevice)),
		}
	case "callout":
		password := text(FilePassword(broker.UserCallout))
		text(callout.IssuerSeedFile)
		text(callout.XKeySeedFile)
		if len(missing) > 0 {
			break
		}
		keys, err := seedsOf(files).Public()
		if err != nil {
			return broker.Config{}, err
		}
		cfg.Callout = &broker.Callout{Issuer: keys.Issuer, XKey: keys.XKey, Password: password}
	default:
		return broker.Config{}, fmt.Errorf("auth %q: there are callout and userpass", auth)
	}
	if cfg.Cluster != nil {
		text(FileCA)
		cluster := *cfg.Cluster
		cluster.Password = text(FilePassword(userCluster))
		cluster.TLS = &broker.TLS{CertFile: cfg.TLS.CertFile, KeyFile: cfg.TLS.KeyFile, CAFile: path.Join(dir, FileCA), VerifyClients: true}
		cfg.Cluster = &cluster
	}
	if len(missing) > 0 {
		return broker.Config{}, fmt.Errorf("the broker's secrets lack %s: make what is missing with fleet broker secrets", strings.Join(missing, ", "))
	}
	return cfg, nil
}

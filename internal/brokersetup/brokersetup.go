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
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/pki"
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
		cert, key, err := newAuthority()
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
		pair, err := newCertificate(files, o)
		if err != nil {
			return nil, err
		}
		put(FileCert, pair.Cert)
		put(FileKey, pair.Key)
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
	have, err := parsed(FileCert, cert)
	if err != nil {
		return false, err
	}
	names, addresses := pki.Split(o.Hosts)
	same := slices.Equal(names, have.DNSNames) && slices.EqualFunc(addresses, have.IPAddresses, net.IP.Equal)
	return same && have.NotAfter.Sub(o.Now) > certLife/3, nil
}

// parsed is a certificate of the files; an error says what to do.
func parsed(name string, raw []byte) (*x509.Certificate, error) {
	cert, err := pki.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: put one there, or remove it and %s to have new ones", name, err, FileCAKey)
	}
	return cert, nil
}

func newAuthority() (cert, key []byte, err error) {
	ca, err := pki.New("Harmony Fleet broker authority", caLife)
	if err != nil {
		return nil, nil, err
	}
	key, err = ca.KeyPEM()
	return ca.CertPEM(), key, err
}

// newCertificate is for servers, who show it to each other too, both ways.
func newCertificate(files map[string][]byte, o Options) (pki.Pair, error) {
	if _, err := parsed(FileCA, files[FileCA]); err != nil {
		return pki.Pair{}, err
	}
	ca, err := pki.Load(files[FileCA], files[FileCAKey], certLife)
	if err != nil {
		return pki.Pair{}, fmt.Errorf("%s: %w", FileCAKey, err)
	}
	return ca.Issue(pki.Request{Subject: pkix.Name{CommonName: "nats"}, Hosts: o.Hosts, Client: true, Now: o.Now})
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

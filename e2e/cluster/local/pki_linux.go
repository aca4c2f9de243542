package local

import (
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/harmony-fleet/fleet/internal/pki"
)

// certLifetime is that of every certificate: no cluster lives that long, since a
// restart of the machine ends it.
const certLifetime = 10 * 365 * 24 * time.Hour

// masters is the group that may do everything.
const masters = "system:masters"

// clientCert asks for the certificate of a user of the API server.
func clientCert(user, group string) pki.Request {
	return pki.Request{Subject: pkix.Name{CommonName: user, Organization: []string{group}}, Client: true}
}

// writePKI makes every certificate, key and kubeconfig that the cluster needs and
// writes them under dir/pki and dir/kubeconfigs, and the administrator's kubeconfig
// to dir/kubeconfig. Nobody but root may read any of them.
func writePKI(dir, name string, at addresses) error {
	ca, err := pki.New("harmony-fleet-"+name, certLifetime)
	if err != nil {
		return err
	}
	proxyCA, err := pki.New("harmony-fleet-"+name+"-front-proxy", certLifetime)
	if err != nil {
		return err
	}
	caKey, err := ca.KeyPEM() // for the controller that signs requests
	if err != nil {
		return err
	}
	accounts, err := pki.NewKey()
	if err != nil {
		return err
	}
	accountsKey, err := pki.EncodeKey(accounts)
	if err != nil {
		return err
	}
	accountsPublic, err := pki.EncodePublicKey(accounts.Public())
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"pki/ca.crt":             ca.CertPEM(),
		"pki/ca.key":             caKey,
		"pki/front-proxy-ca.crt": proxyCA.CertPEM(),
		"pki/sa.key":             accountsKey,
		"pki/sa.pub":             accountsPublic,
	}

	apiHosts := []string{
		"localhost", name, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain,
		"127.0.0.1", at.Node.String(), at.API.String(),
	}
	for _, c := range []struct {
		file string
		by   *pki.Authority
		pki.Request
	}{
		{"apiserver", ca, pki.Request{Subject: pkix.Name{CommonName: "kube-apiserver"}, Hosts: apiHosts}},
		{"kubelet", ca, pki.Request{Subject: pkix.Name{CommonName: "system:node:" + name}, Hosts: []string{name, at.Node.String()}}},
		{"apiserver-kubelet", ca, clientCert("kube-apiserver", masters)},
		{"front-proxy", proxyCA, pki.Request{Subject: pkix.Name{CommonName: "front-proxy-client"}, Client: true}},
	} {
		pair, err := c.by.Issue(c.Request)
		if err != nil {
			return err
		}
		files["pki/"+c.file+".crt"], files["pki/"+c.file+".key"] = pair.Cert, pair.Key
	}

	// Everything but the kubelet is of the group that is authorized without any rule:
	// components need not wait until the API server has made the rules for them. They
	// could read the authority's key as well, being root on the same machine.
	for file, who := range map[string]pki.Request{
		"kubeconfig":                          clientCert("admin", masters),
		"kubeconfigs/kube-controller-manager": clientCert("system:kube-controller-manager", masters),
		"kubeconfigs/kube-scheduler":          clientCert("system:kube-scheduler", masters),
		"kubeconfigs/kube-proxy":              clientCert("system:kube-proxy", masters),
		"kubeconfigs/coredns":                 clientCert("system:coredns", masters),
		"kubeconfigs/kubelet":                 clientCert("system:node:"+name, "system:nodes"),
	} {
		pair, err := ca.Issue(who)
		if err != nil {
			return err
		}
		server := fmt.Sprintf("https://%s:%d", at.Node, apiPort)
		if files[file], err = kubeconfig(name, server, ca.CertPEM(), pair); err != nil {
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

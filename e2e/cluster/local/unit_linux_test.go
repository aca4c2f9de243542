package local

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func TestOptionsSayWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name    string
		options Options
		want    string
	}{
		{"relative directory", Options{Dir: "cluster"}, "clean absolute path"},
		{"unclean directory", Options{Dir: "/var/lib/../lib/x"}, "clean absolute path"},
		{"root directory", Options{Dir: "/"}, "clean absolute path"},
		{"long directory", Options{Dir: "/" + strings.Repeat("d", 80)}, "longer than"},
		{"long name", Options{Name: "twelve-chars"}, "at most 11 characters"},
		{"upper case name", Options{Name: "Fleet"}, "DNS label"},
		{"name with a dash at its end", Options{Name: "fleet-"}, "DNS label"},
		{"small network", Options{Network: netip.MustParsePrefix("10.0.0.0/24")}, "want an IPv4 /16"},
		{"IPv6 network", Options{Network: netip.MustParsePrefix("fd00::/16")}, "want an IPv4 /16"},
		{"registry with a path", Options{InsecureRegistries: []string{"host:5000/team"}}, "want host:port"},
		{"registry that leaves its directory", Options{InsecureRegistries: []string{".."}}, "want host:port"},
		{"network with host bits", Options{Network: netip.MustParsePrefix("10.9.1.0/16")}, "want an IPv4 /16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := c.options.withDefaults(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestZeroOptionsAreComplete(t *testing.T) {
	o, err := Options{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if o.Dir != DefaultDir || o.Name != DefaultName || o.Network.String() != DefaultNetwork || o.CacheDir == "" || o.Logger == nil || o.Progress == nil {
		t.Errorf("got %+v", o)
	}
}

func TestAddressesDoNotOverlap(t *testing.T) {
	at := addressesIn(netip.MustParsePrefix("10.99.0.0/16"))
	if at.Pods.Overlaps(at.Services) {
		t.Error("Pods and Services overlap")
	}
	for _, addr := range []netip.Addr{at.Host, at.Node, at.API, at.DNS} {
		if !at.Network.Contains(addr) || at.Pods.Contains(addr) {
			t.Errorf("%s is in the wrong place", addr)
		}
	}
	for _, addr := range []netip.Addr{at.API, at.DNS} {
		if !at.Services.Contains(addr) {
			t.Errorf("%s is no Service's", addr)
		}
	}
}

func TestCertificatesFitTheirUse(t *testing.T) {
	dir := t.TempDir()
	at := addressesIn(netip.MustParsePrefix("10.99.0.0/16"))
	if err := writePKI(dir, "n1", at); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(read("pki/ca.crt"))
	pair, err := tls.X509KeyPair(read("pki/apiserver.crt"), read("pki/apiserver.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{at.Node.String(), at.API.String(), "kubernetes.default.svc", "localhost", "n1"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("API server as %s: %v", host, err)
		}
	}
	config, err := clientcmd.LoadFromFile(filepath.Join(dir, "kubeconfigs/kubelet"))
	if err != nil {
		t.Fatal(err)
	}
	user := config.AuthInfos[config.Contexts[config.CurrentContext].AuthInfo]
	pair, err = tls.X509KeyPair(user.ClientCertificateData, user.ClientKeyData)
	if err != nil {
		t.Fatal(err)
	}
	if name := pair.Leaf.Subject.CommonName; name != "system:node:n1" {
		t.Errorf("kubelet is %s", name)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("kubelet as a client: %v", err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestConfigurationIsWellFormed(t *testing.T) {
	o, err := Options{Dir: filepath.Join("/tmp", filepath.Base(t.TempDir()))}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(o.Dir) }) // the system does it some day
	at := addressesIn(o.Network)
	if err := writeConfig(o, at, machine{runc: "/usr/sbin/runc", cniDir: "/usr/lib/cni", resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kubelet.json", "kube-proxy.json", "cni/10-fleet.conflist"} {
		content, err := os.ReadFile(filepath.Join(o.Dir, name))
		if err != nil || !json.Valid(content) {
			t.Errorf("%s: valid %v, %v", name, json.Valid(content), err)
		}
	}
	corefile, err := os.ReadFile(filepath.Join(o.Dir, "Corefile"))
	if err != nil || !strings.Contains(string(corefile), "forward . 192.0.2.1:53") {
		t.Errorf("Corefile: %v\n%s", err, corefile)
	}
}

func TestMissingToolsAreNamedInOneMessage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := findTools()
	if err == nil {
		t.Fatal("nothing is missing from an empty PATH")
	}
	for _, want := range []string{"containerd", "runc", "iptables", "apt-get install -y containerd runc iptables"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestLogsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	write := func(text string) {
		if _, err := log.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write("0123456789")
	if err := trimLog(path, 10); err != nil {
		t.Fatal(err)
	}
	if content, _ := os.ReadFile(path); string(content) != "0123456789" {
		t.Errorf("a log within its bound is now %q", content)
	}
	write("x")
	if err := trimLog(path, 10); err != nil {
		t.Fatal(err)
	}
	write("next")
	now, _ := os.ReadFile(path)
	old, _ := os.ReadFile(path + ".1")
	if string(now) != "next" || string(old) != "0123456789x" {
		t.Errorf("after trimming: %q, before: %q", now, old)
	}
}

func TestSourceKeyFollowsTheSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func() string {
		k, err := sourceKey(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("go.mod", "module x\n")
	write("main.go", "package main\n")
	first := key()
	write("notes.txt", "no part of the build")
	if key() != first {
		t.Error("another file changes the key")
	}
	write("main.go", "package main // changed\n")
	if key() == first {
		t.Error("a change does not change the key")
	}
}

func TestMissingSourceIsNamed(t *testing.T) {
	_, err := findSource(t.Context(), "/nowhere")
	if err == nil || !strings.Contains(err.Error(), "/nowhere") || !strings.Contains(err.Error(), kubeFolder) {
		t.Errorf("got %v", err)
	}
}

// The encoder ends a document with a line feed, which once was taken for the sign
// that the link is there.
func TestSupervisorWaitsForTheLink(t *testing.T) {
	for _, c := range []struct {
		name, follows string
		there         bool
	}{
		{"nothing", "", false},
		{"what the encoder writes", "\n", false},
		{"the link", "\n" + string(linkIsThere), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := awaitLink(strings.NewReader(c.follows)); (err == nil) != c.there {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestInsecureRegistriesAreWrittenForContainerd(t *testing.T) {
	l := layout{t.TempDir()}
	if err := allowInsecure(l, []string{"10.1.2.3:5000"}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(l.registries(), "10.1.2.3:5000", "hosts.toml"))
	const want = "server = \"http://10.1.2.3:5000\"\n\n[host.\"http://10.1.2.3:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err != nil || string(content) != want {
		t.Errorf("got %q, %v", content, err)
	}
}

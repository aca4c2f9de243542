package brokersetup

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
)

var hosts = []string{"nats", "*.nats-headless.fleet.svc", "127.0.0.1"}

func complete(t *testing.T, files map[string][]byte, o Options) []string {
	t.Helper()
	changed, err := Complete(files, o)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestWhatIsThereStays(t *testing.T) {
	files := map[string][]byte{FilePassword(broker.UserData): []byte("mine")}
	first := complete(t, files, Options{Hosts: hosts})
	if slices.Contains(first, FilePassword(broker.UserData)) || len(first) != 11 {
		t.Errorf("wrote %v", first)
	}
	before := maps.Clone(files)
	if again := complete(t, files, Options{Hosts: hosts}); len(again) > 0 {
		t.Errorf("wrote %v again", again)
	}
	for name := range before {
		if !bytes.Equal(before[name], files[name]) {
			t.Errorf("%s changed", name)
		}
	}
}

func TestTheCertificateIsMadeAnewInTimeByTheSameAuthority(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		anew bool
	}{
		{"soon after", Options{Hosts: hosts, Now: time.Now().Add(certLife / 2)}, false},
		{"in its last third", Options{Hosts: hosts, Now: time.Now().Add(certLife * 3 / 4)}, true},
		{"for another name", Options{Hosts: append(slices.Clone(hosts), "nats.example")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string][]byte{}
			complete(t, files, Options{Hosts: hosts})
			changed := complete(t, files, tt.o)
			if want := []string{FileCert, FileKey}; tt.anew != slices.Equal(changed, want) {
				t.Fatalf("changed %v", changed)
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(files[FileCA])
			block, _ := pem.Decode(files[FileCert])
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			now := tt.o.Now
			for _, host := range []string{"nats", "nats-0.nats-headless.fleet.svc", "127.0.0.1"} {
				if _, err := cert.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: now}); err != nil {
					t.Errorf("%s: %v", host, err)
				}
			}
		})
	}
}

func TestSomebodyElsesCertificateIsLeftAlone(t *testing.T) {
	files := map[string][]byte{FileCert: []byte("of cert-manager"), FileKey: []byte("k"), FileCA: []byte("c")}
	if changed := complete(t, files, Options{Hosts: hosts}); slices.Contains(changed, FileCert) || slices.Contains(changed, FileCA) {
		t.Errorf("wrote %v", changed)
	}
}

func TestBrokenFilesAreNamed(t *testing.T) {
	for name, broken := range map[string]string{FileCert: FileCert, callout.IssuerSeedFile: "issuer seed", FileCAKey: FileCAKey} {
		files := map[string][]byte{}
		complete(t, files, Options{Hosts: hosts})
		files[name] = []byte("secret junk")
		_, err := Complete(files, Options{Hosts: []string{"other"}})
		if err == nil || !strings.Contains(err.Error(), broken) || strings.Contains(err.Error(), "junk") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Complete(map[string][]byte{}, Options{}); err == nil {
		t.Error("a certificate for nobody")
	}
	for _, auth := range []string{"callout", "userpass"} {
		_, err := Config(map[string][]byte{}, "/x", auth, broker.Config{StoreDir: "/y"})
		if err == nil || !strings.Contains(err.Error(), FileCert) || !strings.Contains(err.Error(), "fleet broker secrets") {
			t.Errorf("%s: %v", auth, err)
		}
	}
}

// A server runs with what was made, and the static users get in by TLS.
func TestAServerRunsWithIt(t *testing.T) {
	files := map[string][]byte{}
	complete(t, files, Options{Hosts: hosts})
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := Config(files, dir, "userpass", broker.Config{Port: broker.AnyPort, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := broker.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	user := broker.UserOps
	nc, err := nats.Connect(srv.ClientURL(), nats.RootCAs(filepath.Join(dir, FileCA)), nats.UserInfo(user, string(files[FilePassword(user)])),
		nats.CustomInboxPrefix(command.InboxPrefix(command.UID(user))))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	cfg, err = Config(files, dir, "callout", broker.Config{StoreDir: "/x", Host: "0.0.0.0", Cluster: &broker.Cluster{Name: "fleet", Port: 6222}})
	if err != nil || cfg.Callout == nil || cfg.Cluster.Password == "" || !cfg.Cluster.TLS.VerifyClients {
		t.Fatalf("%+v, %v", cfg, err)
	}
	if _, err := cfg.Render(); err != nil {
		t.Error(err)
	}
}

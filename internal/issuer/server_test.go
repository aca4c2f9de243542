package issuer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/testcert"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestRotationKeepsOldTokensForTheGrace(t *testing.T) {
	s := start(t, Options{Users: []User{admin}, KeyGrace: time.Hour})
	old, oldID := mint(t, s, admin.Name, MintOptions{}), s.KeyID()
	if err := s.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	if s.KeyID() == oldID {
		t.Fatal("the old key signs still")
	}
	for _, tok := range []string{old, mint(t, s, admin.Name, MintOptions{})} {
		if _, err := verify(t, httpClient, s, tok, DefaultProjectID); err != nil {
			t.Error(err)
		}
	}
	if err := s.DropRetiredKeys(); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t, httpClient, s, old, DefaultProjectID); err == nil {
		t.Error("token of a dropped key verifies")
	}
	if n := len(jwks(t, httpClient, s.JWKSURL()).Keys); n != 1 {
		t.Errorf("%d keys published", n)
	}
}

func TestRetiredKeyVanishesAfterTheGrace(t *testing.T) {
	s := start(t, Options{KeyGrace: time.Millisecond})
	if err := s.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, 5*time.Second, "the old key gone", func() bool { return len(s.keys.jwks().Keys) == 1 })
}

func TestPublishedKeysArePublicOnly(t *testing.T) {
	for _, alg := range []string{ES256, RS256} {
		s := start(t, Options{Algorithm: alg})
		for _, k := range jwks(t, httpClient, s.JWKSURL()).Keys {
			if !k.IsPublic() || k.Algorithm != alg || k.Use != "sig" || k.KeyID == "" {
				t.Errorf("published %v %s %s %s", k.IsPublic(), k.Algorithm, k.Use, k.KeyID)
			}
		}
	}
}

func TestSigningKeysSurviveARestartOfTheProcess(t *testing.T) {
	for _, alg := range []string{ES256, RS256} {
		path := t.TempDir() + "/signing.pem"
		o := Options{Algorithm: alg, SigningKeyFile: path, Users: []User{admin}}
		a := start(t, o)
		if err := a.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		before := jwks(t, httpClient, a.JWKSURL())
		a.Close()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, %v", info.Mode(), err)
		}
		b := start(t, o)
		after := jwks(t, httpClient, b.JWKSURL())
		if b.KeyID() != a.KeyID() || len(before.Keys) != 2 || len(after.Keys) != 2 || before.Keys[1].KeyID != after.Keys[1].KeyID {
			t.Errorf("keys %v before, %v after", before.Keys, after.Keys)
		}
		b.Close()
		// The other algorithm takes over, the old key stays published.
		o.Algorithm = map[string]string{ES256: RS256, RS256: ES256}[alg]
		c := start(t, o)
		if keys := jwks(t, httpClient, c.JWKSURL()).Keys; len(keys) != 3 || keys[0].Algorithm != o.Algorithm {
			t.Errorf("keys %v after a change of the algorithm", keys)
		}
	}
}

func TestBrokenSigningKeyFileIsNotOverwritten(t *testing.T) {
	for _, content := range []string{"garbage", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		path := writeTemp(t, "signing.pem", []byte(content))
		if s, err := Start(t.Context(), Options{SigningKeyFile: path}); err == nil {
			s.Close()
			t.Error("started")
		} else if !strings.Contains(err.Error(), path) {
			t.Error(err)
		}
		if got, _ := os.ReadFile(path); string(got) != content {
			t.Error("overwritten")
		}
	}
	if s, err := Start(t.Context(), Options{SigningKeyFile: t.TempDir() + "/missing/signing.pem"}); err == nil {
		s.Close()
		t.Error("started with a directory that does not exist")
	}
}

func TestStoppedServerComesBackOnTheSameAddress(t *testing.T) {
	s := start(t, Options{Users: []User{admin}})
	tok, u := mint(t, s, admin.Name, MintOptions{}), s.URL()
	for range 3 {
		s.Stop()
		s.Stop()
		if resp, err := httpClient.Get(s.JWKSURL()); err == nil {
			resp.Body.Close()
			t.Fatal("a stopped server answers")
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		if s.URL() != u {
			t.Fatalf("URL %s, was %s", s.URL(), u)
		}
		if _, err := verify(t, httpClient, s, tok, DefaultProjectID); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s.Close()
	if err := s.Restart(); err == nil {
		t.Error("a closed server restarts")
	}
}

func TestPortInUseIsSaidClearly(t *testing.T) {
	a := start(t, Options{})
	b, err := Start(t.Context(), Options{Listen: a.Addr()})
	if err == nil {
		b.Close()
		t.Fatal("two servers on one port")
	}
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), a.Addr()) || !strings.Contains(err.Error(), "choose another port") {
		t.Error(err)
	}
	b = start(t, Options{})
	b.Stop()
	taken, err := net.Listen("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := b.Restart(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("restart: %v", err)
	}
}

func TestEndOfTheContextClosesTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := Start(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	testwait.For(t, 5*time.Second, "the port free", func() bool {
		ln, err := net.Listen("tcp", s.Addr())
		if err == nil {
			ln.Close()
		}
		return err == nil
	})
	s.Close()
	if s, err := Start(ctx, Options{}); err == nil {
		s.Close()
	}
}

func TestCloseIsQuickDuringASlowRequest(t *testing.T) {
	s := start(t, Options{})
	s.SetFaults(Faults{Delay: time.Hour})
	idle, err := net.Dial("tcp", s.Addr()) // never says anything
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		if resp, err := httpClient.Get(s.JWKSURL()); err == nil {
			resp.Body.Close()
		}
	})
	began := time.Now()
	s.Close()
	wg.Wait()
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if err := idle.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the idle connection is left open: %v", err)
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Options{})
	s.SetFaults(Faults{Delay: time.Hour})
	req, _ := http.NewRequestWithContext(shortContext(t), http.MethodGet, s.JWKSURL(), nil)
	if resp, err := httpClient.Do(req); err == nil {
		resp.Body.Close()
		t.Error("answered in time")
	}
	s.SetFaults(Faults{Status: http.StatusBadGateway})
	resp, err := httpClient.Get(s.JWKSURL())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadGateway {
		t.Error(resp.Status)
	}
	s.SetFaults(Faults{})
	jwks(t, httpClient, s.JWKSURL())
}

func TestHealth(t *testing.T) {
	s := start(t, Options{})
	for _, path := range []string{"/healthz", "/ready"} {
		var st struct{ Status string }
		getJSON(t, httpClient, s.URL()+path, &st)
		if st.Status != "ok" {
			t.Errorf("%s: %q", path, st.Status)
		}
	}
}

func TestKeyFileRoundTrip(t *testing.T) {
	for _, alg := range []string{ES256, RS256} {
		a := start(t, Options{Algorithm: alg, Users: []User{device}})
		data := keyFile(t, a, device.Name)
		if again := keyFile(t, a, device.ID); !bytes.Equal(data, again) {
			t.Error("another key the second time")
		}
		kf, err := credentials.ParseKeyFile(data)
		if err != nil {
			t.Fatal(err)
		}
		if kf.Type != "serviceaccount" || kf.UserID != device.ID || kf.KeyID == "" {
			t.Errorf("key file %v", kf)
		}
		u := device
		u.KeyFile = data
		b := start(t, Options{Algorithm: alg, Users: []User{u}})
		if status, answer := ask(t, b, jwtBearer(assertion(t, data, b.URL(), nil))); status != http.StatusOK {
			t.Errorf("status %d: %v", status, answer)
		}
		u.ID = "42"
		if err := b.AddUser(User{Name: "x", ID: "42", KeyFile: data}); err == nil {
			t.Error("key file of another user taken")
		}
		if _, err := b.KeyFile("nobody"); err == nil {
			t.Error("key file of nobody")
		}
	}
}

func TestTwoKeyFilesMadeAtOnceAreOne(t *testing.T) {
	s := start(t, Options{Users: []User{device}})
	var files [8][]byte
	var wg sync.WaitGroup
	for i := range files {
		wg.Go(func() { files[i], _ = s.KeyFile(device.Name) })
	}
	wg.Wait()
	for _, f := range files {
		if f == nil || !bytes.Equal(f, files[0]) {
			t.Error("key files differ")
		}
	}
}

func TestServesTLS(t *testing.T) {
	cert := testcert.New(t)
	pem, err := os.ReadFile(cert.CA)
	if err != nil {
		t.Fatal(err)
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(pem)
	s := start(t, Options{TLSCert: cert.Cert, TLSKey: cert.Key, Users: []User{admin}})
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") {
		t.Fatal(s.URL())
	}
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: ca}}
	c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	if _, err := verify(t, c, s, mint(t, s, admin.Name, MintOptions{}), DefaultProjectID); err != nil {
		t.Error(err)
	}
	if s, err := Start(t.Context(), Options{TLSCert: "missing", TLSKey: cert.Key}); err == nil {
		s.Close()
		t.Error("started without a certificate")
	}
}

func TestIssuerURLCanBeOverridden(t *testing.T) {
	s := start(t, Options{Issuer: "https://id.example.com/auth"})
	d := discovery(t, httpClient, "http://"+s.Addr()+"/auth")
	if d.Issuer != "https://id.example.com/auth" || d.TokenEndpoint != d.Issuer+"/oauth/v2/token" || d.JwksURI != d.Issuer+"/oauth/v2/keys" {
		t.Errorf("discovery %+v", d)
	}
	if n := len(jwks(t, httpClient, "http://"+s.Addr()+"/auth/oauth/v2/keys").Keys); n != 1 {
		t.Errorf("%d keys", n)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
		says string
	}{
		{"address", Options{Listen: "nonsense"}, "host:port"},
		{"all addresses", Options{Listen: ":0"}, "set the issuer URL"},
		{"all addresses, v6", Options{Listen: "[::]:0"}, "set the issuer URL"},
		{"half of TLS", Options{TLSCert: "x"}, "both or neither"},
		{"issuer with slash", Options{Issuer: "https://x/"}, "trailing slash"},
		{"issuer with password", Options{Issuer: "https://a:hidden@x"}, "https://host"},
		{"project", Options{ProjectID: "a b"}, "project id"},
		{"algorithm", Options{Algorithm: "HS256"}, "ES256 or RS256"},
		{"lifetime", Options{TokenLifetime: time.Millisecond}, "at least 1s"},
		{"grace", Options{KeyGrace: -1}, "positive"},
		{"user name", Options{Users: []User{{Name: "../x"}}}, "user name"},
		{"user id", Options{Users: []User{{Name: "x", ID: "abc"}}}, "digits"},
		{"role", Options{Users: []User{{Name: "x", Roles: []string{""}}}}, "role"},
		{"same name", Options{Users: []User{{Name: "x"}, {Name: "x", ID: "1"}}}, "there already"},
		{"same id", Options{Users: []User{{Name: "x", ID: "1"}, {Name: "y", ID: "1"}}}, "another id"},
		{"key file", Options{Users: []User{{Name: "x", KeyFile: []byte("{}")}}}, "key file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Start(t.Context(), tc.o)
			if err == nil {
				s.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("says %v, want %q", err, tc.says)
			}
		})
	}
}

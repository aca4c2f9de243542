package oidcverify

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// simulated gives an issuer and a verifier that live on synctest's clock.
func simulated(t *testing.T, edit func(*IssuerConfig)) (*idp, *Verifier) {
	i := newIDP()
	i.url = "https://issuer.example"
	v := i.verifier(t, func(c *IssuerConfig) {
		c.transport = i
		if edit != nil {
			edit(c)
		}
	})
	return i, v
}

func garbageKid() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func TestUnknownKeyIDFloodIsRateLimitedAndDoesNotHideARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := simulated(t, nil)
		mustVerify(t, v, i.sign("ec-1", nil))
		other := newIDP()
		other.url = i.url
		garbage := func() {
			k := garbageKid()
			other.add(k, other.keys["ec-1"])
			_, err := v.Verify(t.Context(), other.sign(k, nil))
			if err == nil {
				t.Fatal("garbage accepted")
			}
		}
		start := time.Now()
		for time.Since(start) < time.Minute {
			garbage()
			time.Sleep(10 * time.Millisecond)
		}
		if n := i.jwksHits.Load(); n < 20 || n > 32 {
			t.Errorf("%d fetches in a minute of 6,000 garbage key ids, want one each 2 s", n)
		}

		i.addEC("ec-2") // the real rotation, with the flood going on
		i.remove("ec-1")
		tok := i.sign("ec-2", nil)
		rotated := time.Now()
		for {
			garbage()
			if _, err := v.Verify(t.Context(), tok); err == nil {
				break
			}
			if time.Since(rotated) > DefaultMinFetchInterval+100*time.Millisecond {
				t.Fatal("the new key was not found within one interval")
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestAbsentKeyIDIsRememberedButFoundOnceItExists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := simulated(t, nil)
		mustVerify(t, v, i.sign("ec-1", nil))
		i.addEC("ec-2")
		tok := i.sign("ec-2", nil)
		k2 := i.keys["ec-2"]
		i.remove("ec-2") // signed, but not published yet

		time.Sleep(3 * time.Second)
		_, err := v.Verify(t.Context(), tok)
		wantReason(t, err, ReasonUnknownKey)
		hits := i.jwksHits.Load()
		for range 50 { // the same dead key for 5 s: no fetch
			time.Sleep(100 * time.Millisecond)
			_, err = v.Verify(t.Context(), tok)
			wantReason(t, err, ReasonUnknownKey)
		}
		if n := i.jwksHits.Load() - hits; n != 0 {
			t.Errorf("a remembered key id caused %d fetches", n)
		}
		i.add("ec-2", k2)
		time.Sleep(DefaultNegativeTTL)
		mustVerify(t, v, tok)
	})
}

func TestCallerWhoGivesUpDoesNotTakeTheFetchAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := simulated(t, nil)
		gate := make(chan struct{})
		i.gate.Store(&gate)
		tok := i.sign("ec-1", nil)

		impatient, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := v.Verify(impatient, tok)
			wantReason(t, err, ReasonUnavailable)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v", err)
			}
		})
		synctest.Wait()
		for range 5 {
			wg.Go(func() { mustVerify(t, v, tok) })
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(gate)
		wg.Wait()
		if n := i.jwksHits.Load(); n != 1 {
			t.Errorf("%d fetches, want one shared by all", n)
		}
	})
}

func TestSlowIssuerHoldsOnlySoManyCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := simulated(t, func(c *IssuerConfig) { c.MaxWaiters = 3 })
		gate := make(chan struct{})
		i.gate.Store(&gate)
		tok := i.sign("ec-1", nil)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, err := v.Verify(t.Context(), tok)
				wantReason(t, err, ReasonUnavailable)
			})
		}
		synctest.Wait()
		start := time.Now()
		_, err := v.Verify(t.Context(), tok)
		wantReason(t, err, ReasonUnavailable)
		if time.Since(start) != 0 {
			t.Error("the fourth caller waited")
		}
		wg.Wait() // the fetch's own timeout ends the others
		if d := time.Since(start); d != DefaultFetchTimeout {
			t.Errorf("the fetch ended after %v, want %v", d, DefaultFetchTimeout)
		}
	})
}

func TestIssuerDownKeepsTheOldKeysAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := simulated(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		synctest.Wait()
		tok := i.sign("ec-1", nil)
		mustVerify(t, v, tok)

		i.down.Store(true)
		time.Sleep(20 * time.Minute)
		mustVerify(t, v, tok) // stale keys still serve
		if st := v.Stats(); st.FetchErrors == 0 || st.LastError == "" || time.Since(st.LastSuccess) < 10*time.Minute || st.Keys != 1 {
			t.Errorf("stats while down: %+v", st)
		}
		i.addEC("ec-2")
		tok2 := i.sign("ec-2", nil)
		_, err := v.Verify(t.Context(), tok2)
		wantReason(t, err, ReasonUnavailable)

		i.down.Store(false)
		time.Sleep(6 * time.Second) // Run's own retry
		mustVerify(t, v, tok2)
		if st := v.Stats(); st.LastError != "" || st.Keys != 2 {
			t.Errorf("stats after: %+v", st)
		}

		i.remove("ec-1") // a withdrawn key goes with the next periodic fetch
		time.Sleep(6 * time.Minute)
		_, err = v.Verify(t.Context(), i.claimsSignedByRemoved(t))
		if err == nil {
			t.Error("a withdrawn key still serves")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

// claimsSignedByRemoved is a token that names the withdrawn key id ec-1.
func (i *idp) claimsSignedByRemoved(*testing.T) string {
	i.mu.Lock()
	k := i.keys["ec-2"]
	i.mu.Unlock()
	return signWith(k, "ec-1", i.claims())
}

func TestColdIssuerDownIsUnavailableAtOnceAndThenWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := simulated(t, nil)
		i.down.Store(true)
		tok := i.sign("ec-1", nil)
		for range 3 {
			_, err := v.Verify(t.Context(), tok)
			wantReason(t, err, ReasonUnavailable)
		}
		if n := v.Stats().Fetches; n != 1 {
			t.Errorf("%d fetches from a dead issuer within the interval, want 1", n)
		}
		i.down.Store(false)
		time.Sleep(DefaultMinFetchInterval)
		mustVerify(t, v, tok)
	})
}

func TestClosedVerifierFetchesNothing(t *testing.T) {
	i := startIDP(t)
	v := i.verifier(t, nil)
	v.Close()
	v.Close()
	_, err := v.Verify(t.Context(), i.sign("ec-1", nil))
	wantReason(t, err, ReasonUnavailable)
	if i.jwksHits.Load() != 0 {
		t.Error("fetched")
	}
}

func TestDiscoveryOfAnotherIssuerIsRefused(t *testing.T) {
	for name, edit := range map[string]func(*idp){
		"issuer":         func(i *idp) { i.issuer = "https://evil.example" },
		"trailing slash": func(i *idp) { i.issuer = i.url + "/" },
		"plain jwks_uri": func(i *idp) { i.jwksURI = "http://10.1.2.3/keys" },
		"empty jwks_uri": func(i *idp) { i.jwksURI = "relative" },
		"not found":      func(i *idp) { i.jwksURI = i.url + "/none" },
		"junk":           func(i *idp) { i.raw = []byte("<html>") },
		"huge":           func(i *idp) { i.raw = make([]byte, maxBody+1) },
	} {
		t.Run(name, func(t *testing.T) {
			i := startIDP(t)
			edit(i)
			_, err := i.verifier(t, nil).Verify(t.Context(), i.sign("ec-1", nil))
			wantReason(t, err, ReasonUnavailable)
		})
	}
}

func TestKubernetesStyleIssuerOverTLSWithARotatingToken(t *testing.T) {
	i := newIDP()
	srv := httptest.NewUnstartedServer(i)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake below
	srv.StartTLS()
	defer srv.Close()
	i.url, i.needAuth = srv.URL, "first"
	dir := t.TempDir()
	ca, tokenFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	write(t, tokenFile, "first\n")

	v := i.verifier(t, func(c *IssuerConfig) {
		c.CAFile, c.TokenFile, c.MinFetchInterval = ca, tokenFile, time.Nanosecond
	})
	mustVerify(t, v, i.sign("ec-1", nil))
	i.needAuth = "second"
	write(t, tokenFile, "second\n")
	i.addEC("ec-2")
	mustVerify(t, v, i.sign("ec-2", nil))

	untrusted := i.verifier(t, nil) // without the CA
	_, err := untrusted.Verify(t.Context(), i.sign("ec-1", nil))
	wantReason(t, err, ReasonUnavailable)
}

func TestBearerTokenGoesToConfiguredHostsOnly(t *testing.T) {
	keys := newIDP()
	var leaked string
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked = r.Header.Get("Authorization")
		if leaked == "" {
			http.Error(w, "who", http.StatusUnauthorized)
			return
		}
		keys.ServeHTTP(w, r)
	}))
	defer foreign.Close()
	i := startIDP(t)
	i.needAuth, i.jwksURI = "secret", foreign.URL+"/keys"
	tokenFile := filepath.Join(t.TempDir(), "token")
	write(t, tokenFile, "secret")

	v := i.verifier(t, func(c *IssuerConfig) { c.TokenFile = tokenFile })
	_, err := v.Verify(t.Context(), i.sign("ec-1", nil))
	wantReason(t, err, ReasonUnavailable)
	if leaked != "" || !strings.Contains(err.Error(), "jwks_url") || strings.Contains(err.Error(), "secret") {
		t.Errorf("leaked %q, err = %v", leaked, err)
	}

	keys.add("ec-1", i.keys["ec-1"])
	v = i.verifier(t, func(c *IssuerConfig) { c.TokenFile, c.JWKSURL = tokenFile, foreign.URL+"/keys" })
	mustVerify(t, v, i.sign("ec-1", nil)) // named in the configuration: trusted with it
}

func TestRedirectToPlainHTTPIsRefused(t *testing.T) {
	srv := httptest.NewServer(http.RedirectHandler("http://192.0.2.1/keys", http.StatusFound))
	defer srv.Close()
	i := startIDP(t)
	v := i.verifier(t, func(c *IssuerConfig) { c.JWKSURL = srv.URL })
	_, err := v.Verify(t.Context(), i.sign("ec-1", nil))
	wantReason(t, err, ReasonUnavailable)
	if !strings.Contains(err.Error(), "plain http") {
		t.Errorf("err = %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

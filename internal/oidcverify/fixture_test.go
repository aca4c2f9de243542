package oidcverify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const audience = "277001"

var testRSA = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// idp is a small issuer: discovery and JWKS, with faults on request.
type idp struct {
	url  string
	down atomic.Bool
	// gate, when set, holds each JWKS answer until it is closed.
	gate      atomic.Pointer[chan struct{}]
	jwksHits  atomic.Int64
	otherHits atomic.Int64
	auth      atomic.Value // last Authorization header
	needAuth  string       // required bearer token
	issuer    string       // overrides the discovery document's issuer
	jwksURI   string       // overrides its jwks_uri

	mu   sync.Mutex
	keys map[string]crypto.Signer
	raw  []byte // overrides the JWKS body
}

func newIDP() *idp {
	i := &idp{keys: map[string]crypto.Signer{}}
	i.addEC("ec-1")
	return i
}

func startIDP(t testing.TB) *idp {
	t.Helper()
	i := newIDP()
	srv := httptest.NewServer(i)
	t.Cleanup(srv.Close)
	i.url = srv.URL
	return i
}

func (i *idp) addEC(kid string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys[kid] = k
}

func (i *idp) add(kid string, k crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys[kid] = k
}

func (i *idp) remove(kid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.keys, kid)
}

func (i *idp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.auth.Store(r.Header.Get("Authorization"))
	if i.down.Load() {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	if i.needAuth != "" && r.Header.Get("Authorization") != "Bearer "+i.needAuth {
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		i.otherHits.Add(1)
		doc := map[string]string{"issuer": i.url, "jwks_uri": i.url + "/keys"}
		if i.issuer != "" {
			doc["issuer"] = i.issuer
		}
		if i.jwksURI != "" {
			doc["jwks_uri"] = i.jwksURI
		}
		json.NewEncoder(w).Encode(doc)
	case "/keys":
		i.jwksHits.Add(1)
		if g := i.gate.Load(); g != nil {
			select {
			case <-*g:
			case <-r.Context().Done():
				return
			}
		}
		w.Write(i.jwks())
	default:
		i.otherHits.Add(1)
		http.NotFound(w, r)
	}
}

func (i *idp) jwks() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.raw != nil {
		return i.raw
	}
	var set jose.JSONWebKeySet
	for kid, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid, Use: "sig"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		panic(err)
	}
	return b
}

func (i *idp) claims() jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{"iss": i.url, "sub": "123", "aud": []string{audience, "other"},
		"exp": now.Add(time.Hour).Unix(), "iat": now.Unix()}
}

// sign makes a token with the key kid.
func (i *idp) sign(kid string, edit func(jwt.MapClaims)) string {
	i.mu.Lock()
	k := i.keys[kid]
	i.mu.Unlock()
	c := i.claims()
	if edit != nil {
		edit(c)
	}
	return signWith(k, kid, c)
}

func signWith(k crypto.Signer, kid string, c jwt.Claims) string {
	var method jwt.SigningMethod = jwt.SigningMethodES256
	if _, ok := k.(*rsa.PrivateKey); ok {
		method = jwt.SigningMethodRS256
	}
	tok := jwt.NewWithClaims(method, c)
	if kid != "" {
		tok.Header["kid"] = kid
	}
	s, err := tok.SignedString(k)
	if err != nil {
		panic(err)
	}
	return s
}

// RoundTrip serves without a network, for tests on a simulated clock.
func (i *idp) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := &recorder{h: http.Header{}, code: http.StatusOK}
	i.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	res := httptest.NewRecorder()
	res.WriteHeader(rec.code)
	res.Write(rec.body.Bytes())
	return res.Result(), nil
}

type recorder struct {
	h    http.Header
	code int
	body bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.h }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func (i *idp) verifier(t testing.TB, edit func(*IssuerConfig)) *Verifier {
	t.Helper()
	cfg := IssuerConfig{URL: i.url, Audience: audience}
	if edit != nil {
		edit(&cfg)
	}
	v, err := New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func wantReason(t testing.TB, err error, want Reason) {
	t.Helper()
	if got := ReasonOf(err); got != want {
		t.Fatalf("reason = %q (%v), want %q", got, err, want)
	}
}

func mustVerify(t testing.TB, v *Verifier, token string) Claims {
	t.Helper()
	c, err := v.Verify(context.Background(), token)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return c
}

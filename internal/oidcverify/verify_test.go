package oidcverify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func TestGoodTokensAreAccepted(t *testing.T) {
	i := startIDP(t)
	i.add("rsa-1", testRSA())
	v := i.verifier(t, nil)
	for _, kid := range []string{"ec-1", "rsa-1"} {
		c := mustVerify(t, v, i.sign(kid, func(m jwt.MapClaims) { m["roles"] = []string{"a"} }))
		if c.Subject != "123" || c.Issuer != i.url || c.Raw["roles"] == nil || time.Until(c.Expiry) < time.Minute || c.IssuedAt.IsZero() || len(c.Audience) != 2 {
			t.Errorf("%s: claims = %+v", kid, c)
		}
	}
	if n := i.jwksHits.Load(); n != 1 {
		t.Errorf("%d fetches for two tokens, want 1", n)
	}
	mustVerify(t, v, i.sign("ec-1", func(m jwt.MapClaims) { m["aud"] = audience }))
	mustVerify(t, v, i.sign("ec-1", func(m jwt.MapClaims) { m["exp"] = time.Now().Add(-10 * time.Second).Unix() })) // within leeway
	mustVerify(t, v, i.sign("ec-1", func(m jwt.MapClaims) { m["nbf"] = time.Now().Add(10 * time.Second).Unix() }))
}

func TestBadTokensAreRefusedWithTheirReason(t *testing.T) {
	i := startIDP(t)
	i.add("rsa-1", testRSA())
	v := i.verifier(t, nil)
	mustVerify(t, v, i.sign("ec-1", nil))
	hits := i.jwksHits.Load()

	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	der, _ := x509.MarshalPKIXPublicKey(testRSA().Public())
	pubPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	with := func(m jwt.SigningMethod, key any, kid string, edit func(*jwt.Token)) string {
		tok := jwt.NewWithClaims(m, i.claims())
		tok.Header["kid"] = kid
		if edit != nil {
			edit(tok)
		}
		s, err := tok.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := i.sign("ec-1", nil)
	parts := strings.Split(good, ".")
	forged := parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+i.url+`","sub":"root","aud":"`+audience+`","exp":99999999999}`)) + "." + parts[2]

	for _, tt := range []struct {
		name, token string
		want        Reason
	}{
		{"expired", i.sign("ec-1", func(m jwt.MapClaims) { m["exp"] = time.Now().Add(-time.Minute).Unix() }), ReasonExpired},
		{"no expiry", i.sign("ec-1", func(m jwt.MapClaims) { delete(m, "exp") }), ReasonExpired},
		{"absurd expiry", i.sign("ec-1", func(m jwt.MapClaims) { m["exp"] = 1e300 }), ReasonExpired},
		{"not yet valid", i.sign("ec-1", func(m jwt.MapClaims) { m["nbf"] = time.Now().Add(time.Minute).Unix() }), ReasonNotYet},
		{"wrong audience", i.sign("ec-1", func(m jwt.MapClaims) { m["aud"] = "other" }), ReasonAudience},
		{"no audience", i.sign("ec-1", func(m jwt.MapClaims) { delete(m, "aud") }), ReasonAudience},
		{"other issuer", i.sign("ec-1", func(m jwt.MapClaims) { m["iss"] = "https://evil.example" }), ReasonIssuer},
		{"no issuer", i.sign("ec-1", func(m jwt.MapClaims) { delete(m, "iss") }), ReasonIssuer},
		{"no subject", i.sign("ec-1", func(m jwt.MapClaims) { delete(m, "sub") }), ReasonMalformed},
		{"blank subject", i.sign("ec-1", func(m jwt.MapClaims) { m["sub"] = " " }), ReasonMalformed},
		{"wrong signature", signWith(other, "ec-1", i.claims()), ReasonSignature},
		{"claims changed", forged, ReasonSignature},
		{"alg none", with(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "ec-1", nil), ReasonAlgorithm},
		{"HS256 with the public key", with(jwt.SigningMethodHS256, pubPEM, "rsa-1", nil), ReasonAlgorithm},
		{"PS256", with(jwt.SigningMethodPS256, testRSA(), "rsa-1", nil), ReasonAlgorithm},
		{"RS512", with(jwt.SigningMethodRS512, testRSA(), "rsa-1", nil), ReasonAlgorithm},
		{"ES384", with(jwt.SigningMethodES384, p384, "ec-1", nil), ReasonAlgorithm},
		{"critical header", with(jwt.SigningMethodRS256, testRSA(), "rsa-1", func(tok *jwt.Token) { tok.Header["crit"] = []string{"b64"} }), ReasonMalformed},
		{"empty", "", ReasonMalformed},
		{"opaque", "Kj3v9", ReasonMalformed},
		{"four parts", good + ".x", ReasonMalformed},
		{"no JSON", "e30.bm8.x", ReasonMalformed},
		{"huge", good + strings.Repeat("x", MaxTokenBytes), ReasonMalformed},
		{"signature not base64", parts[0] + "." + parts[1] + ".!!", ReasonMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := v.Verify(t.Context(), tt.token)
			wantReason(t, err, tt.want)
			if c.Raw != nil || c.Subject != "" {
				t.Errorf("claims of a refused token: %+v", c)
			}
			if len(tt.token) > 20 && strings.Contains(err.Error(), tt.token[len(tt.token)-20:]) {
				t.Errorf("the error holds the token: %v", err)
			}
		})
	}
	if n := i.jwksHits.Load(); n != hits {
		t.Errorf("refused tokens caused %d fetches", n-hits)
	}
}

func TestKeyTypeAndHeaderMustAgree(t *testing.T) {
	i := startIDP(t)
	i.add("rsa-1", testRSA())
	v := i.verifier(t, nil)
	// An RS256 token that names the id of an EC key finds no key of its algorithm.
	_, err := v.Verify(t.Context(), signWith(testRSA(), "ec-1", i.claims()))
	wantReason(t, err, ReasonUnknownKey)
}

func TestTokenWithoutKeyIDUsesTheKeysOfItsAlgorithm(t *testing.T) {
	i := startIDP(t)
	i.addEC("ec-2")
	v := i.verifier(t, nil)
	for _, kid := range []string{"ec-1", "ec-2"} {
		i.mu.Lock()
		k := i.keys[kid]
		i.mu.Unlock()
		mustVerify(t, v, signWith(k, "", i.claims()))
	}
}

func TestJunkNeverReachesTheIssuer(t *testing.T) {
	i := startIDP(t)
	v := i.verifier(t, nil)
	for _, tok := range []string{
		"a.b.c",
		i.sign("ec-1", func(m jwt.MapClaims) { m["exp"] = 1 }),
		i.sign("ec-1", func(m jwt.MapClaims) { m["iss"] = "x" }),
	} {
		if _, err := v.Verify(t.Context(), tok); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := i.jwksHits.Load() + i.otherHits.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, want string
		cfg        IssuerConfig
	}{
		{"no url", "url is empty", IssuerConfig{Audience: "a"}},
		{"no audience", "audience is empty", IssuerConfig{URL: "https://x"}},
		{"plain http", "plain http", IssuerConfig{URL: "http://issuer.example", Audience: "a"}},
		{"plain http keys", "jwks_url", IssuerConfig{URL: "https://issuer.example", JWKSURL: "http://10.0.0.1/keys", Audience: "a"}},
		{"password", "user name", IssuerConfig{URL: "https://u:p@issuer.example", Audience: "a"}},
		{"scheme", "not an http", IssuerConfig{URL: "ftp://issuer.example", Audience: "a"}},
		{"relative", "absolute", IssuerConfig{URL: "issuer.example", Audience: "a"}},
		{"no ca file", "ca_file", IssuerConfig{URL: "https://x", Audience: "a", CAFile: dir + "/none"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.cfg, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "u:p@") {
				t.Errorf("err = %v, want one with %q", err, tt.want)
			}
		})
	}
	for _, ok := range []IssuerConfig{
		{URL: "http://127.0.0.1:1", Audience: "a"}, {URL: "http://localhost:1", Audience: "a"}, {URL: "http://[::1]:1", Audience: "a"},
		{URL: "http://issuer.example", Audience: "a", Insecure: true},
	} {
		if _, err := New(ok, nil); err != nil {
			t.Errorf("%s: %v", ok.URL, err)
		}
	}
}

func TestKeySetLeavesOutWhatItCannotUse(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	i := newIDP()
	i.add("short", short)
	set, err := parseKeySet(i.jwks())
	if err != nil || len(set) != 1 || set[0].id != "ec-1" {
		t.Fatalf("set = %+v, %v", set, err)
	}
	good := strings.TrimSuffix(strings.TrimPrefix(string(i.jwks()), `{"keys":[`), `]}`)
	set, err = parseKeySet([]byte(`{"keys":[{"kty":"oct","k":"AAAA","kid":"ec-1"},{"kty":"WAT"},42,null,` + good + `]}`))
	if err != nil || len(set) != 1 {
		t.Fatalf("set = %+v, %v", set, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`, `<html>`} {
		if _, err := parseKeySet([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
	enc := strings.ReplaceAll(string(i.jwks()), `"use":"sig"`, `"use":"enc"`)
	if _, err := parseKeySet([]byte(enc)); err == nil {
		t.Error("encryption keys accepted")
	}
}

func FuzzPeek(f *testing.F) {
	i := newIDP()
	i.url = "https://issuer.example"
	f.Add(i.sign("ec-1", nil))
	f.Add("e30.e30.")
	f.Add("bnVsbA.bnVsbA.x")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","crit":[]}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://issuer.example","exp":1e308}`)) + ".")
	v, err := New(IssuerConfig{URL: i.url, Audience: audience, transport: newIDP()}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(v.Close)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := PeekIssuer(token); err != nil && ReasonOf(err) == "" {
			t.Errorf("untyped error %v", err)
		}
		if _, err := v.Verify(ctx, token); err == nil || ReasonOf(err) == "" {
			t.Errorf("Verify: %v", err)
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add(newIDP().jwks())
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		set, err := parseKeySet(raw)
		if err == nil && len(set) == 0 {
			t.Error("an empty set without an error")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	i := startIDP(b)
	i.add("rsa-1", testRSA())
	v := i.verifier(b, nil)
	for _, kid := range []string{"ec-1", "rsa-1"} {
		tok := i.sign(kid, nil)
		mustVerify(b, v, tok)
		b.Run(kid[:strings.Index(kid, "-")], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(context.Background(), tok); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

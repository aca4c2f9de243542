package credentials_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/testcert"
)

// oddIssuer answers discovery rightly and the rest as told.
func oddIssuer(t *testing.T, discovery, token http.HandlerFunc) string {
	t.Helper()
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	if discovery == nil {
		discovery = func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":%q}`, srv.URL, srv.URL+"/token")
		}
	}
	mux.HandleFunc("/.well-known/openid-configuration", discovery)
	if token != nil {
		mux.HandleFunc("/token", token)
	}
	return srv.URL
}

func TestOddIssuersGiveClearErrors(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	jwt := func(payload string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".hidden"
	}
	var stolen atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Add(1) }))
	defer thief.Close()
	for _, tc := range []struct {
		name             string
		discovery, token http.HandlerFunc
		kind             error
		says             string
	}{
		{"500 at discovery", text(500, "hidden"), nil, credentials.ErrUnavailable, "HTTP 500"},
		{"404 at discovery", text(404, "hidden"), nil, credentials.ErrRefused, "HTTP 404: check the URL"},
		{"not JSON at discovery", text(200, "hidden"), nil, credentials.ErrRefused, "not understood"},
		{"503 at the token endpoint", nil, text(503, "hidden"), credentials.ErrUnavailable, "HTTP 503"},
		{"OAuth error with 500", nil, text(500, `{"error":"server_error"}`), credentials.ErrUnavailable, "HTTP 500"},
		{"not JSON with a token in it", nil, text(200, `{"access_token":"hidden"`), credentials.ErrRefused, "not understood"},
		{"opaque token", nil, text(200, `{"access_token":"hidden","expires_in":10}`), credentials.ErrRefused, "access token type to JWT"},
		{"no token", nil, text(200, `{}`), credentials.ErrRefused, "not a JWT"},
		{"token without end", nil, text(200, `{"access_token":"`+jwt(`{}`)+`"}`), credentials.ErrRefused, "never does"},
		{"dead token", nil, text(200, `{"access_token":"`+jwt(`{"iat":5,"exp":5}`)+`","expires_in":9}`), credentials.ErrRefused, "expired already"},
		{"long description", nil, text(400, `{"error":"invalid_grant","error_description":"a\n`+strings.Repeat("x", 5000)+`"}`), credentials.ErrRefused, "invalid_grant: a x"},
		{"clock is wrong", nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
			text(400, `{"error":"invalid_grant"}`)(w, r)
		}, credentials.ErrRefused, "set the clock"},
		{"redirect of the assertion", nil, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
		}, credentials.ErrRefused, "redirects are not followed"},
		{"plain token endpoint elsewhere", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer":"http://%s","token_endpoint":"http://id.example.com/token"}`, r.Host)
		}, nil, credentials.ErrRefused, "plain http"},
		{"no token endpoint", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer":"http://%s"}`, r.Host)
		}, nil, credentials.ErrRefused, "token endpoint cannot be used"},
		{"endless answer", nil, func(w http.ResponseWriter, _ *http.Request) {
			for range 64 {
				if _, err := w.Write(bytes.Repeat([]byte("hidden"), 10000)); err != nil {
					return
				}
			}
		}, credentials.ErrRefused, "not understood"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := w.cfg
			cfg.Issuer = oddIssuer(t, tc.discovery, tc.token)
			cred, err := source(t, cfg).Credential(t.Context())
			if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), cfg.Issuer) || cred != (credentials.Credential{}) {
				t.Fatalf("says %v, want %q", err, tc.says)
			}
			if strings.Contains(err.Error(), "hidden") || len(err.Error()) > 600 || strings.Contains(err.Error(), "\n") {
				t.Errorf("passes on what it should not: %v", err)
			}
		})
	}
	if stolen.Load() != 0 {
		t.Error("the assertion was carried to another server")
	}
}

func TestMovedTokenEndpointIsFoundAgain(t *testing.T) {
	w := newWorld(t, issuer.Options{})
	var moved atomic.Bool
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		path := "/old"
		if moved.Load() {
			path = "/new"
		}
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(rw, `{"issuer":%q,"token_endpoint":%q}`, srv.URL, srv.URL+path)
		case path:
			tok, err := w.srv.Mint(user, issuer.MintOptions{Claims: map[string]any{"path": path}})
			if err != nil {
				t.Error(err)
			}
			fmt.Fprintf(rw, `{"access_token":%q,"expires_in":3600}`, tok)
		default:
			http.NotFound(rw, r)
		}
	}))
	defer srv.Close()
	w.cfg.Issuer = srv.URL
	src := source(t, w.cfg)
	credentials.SetNow(src, w.clock.now)
	old := get(t, src)
	moved.Store(true)
	w.clock.add(50 * time.Minute)
	if get(t, src) != old {
		t.Error("not the token at hand")
	}
	w.clock.add(credentials.RetryAfter)
	if path := part(t, get(t, src).Token, 1)["path"]; path != "/new" {
		t.Errorf("token of %v", path)
	}
}

func TestCAFileIsTheOnlyAuthority(t *testing.T) {
	cert := testcert.New(t)
	w := newWorld(t, issuer.Options{TLSCert: cert.Cert, TLSKey: cert.Key})
	if _, err := w.src.Credential(t.Context()); !errors.Is(err, credentials.ErrUnavailable) || !strings.Contains(err.Error(), "set ca_file") {
		t.Errorf("without a CA file: %v", err)
	}
	for name, tc := range map[string]struct{ file, says string }{
		"no certificate": {write(t, t.TempDir()+"/ca.pem", "garbage", 0o644), "no certificate"},
		"another CA":     {testcert.New(t).CA, "set ca_file"},
		"the right CA":   {cert.CA, ""},
	} {
		w.cfg.CAFile = tc.file
		_, err := source(t, w.cfg).Credential(t.Context())
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
	w.cfg.CAFile = "/missing/ca.pem"
	if _, err := source(t, w.cfg).Credential(t.Context()); err == nil || !strings.Contains(err.Error(), "[credentials] ca_file") {
		t.Error(err)
	}
}

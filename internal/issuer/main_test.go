package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the provider library writes there
	goleak.VerifyTestMain(m)
}

// httpClient keeps no connections, which would look like leaks.
var httpClient = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var (
	admin  = User{Name: "admin", Roles: []string{"fleet-admin", "fleet-viewer"}, ClientSecret: "s3cret-of-admin"}
	device = User{Name: "device-vm-00", ID: "300000000000000001", Roles: []string{"device"}}
)

func getJSON(t *testing.T, c *http.Client, u string, into any) {
	t.Helper()
	resp, err := c.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", u, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}

func discovery(t *testing.T, c *http.Client, issuer string) oidc.DiscoveryConfiguration {
	t.Helper()
	var d oidc.DiscoveryConfiguration
	getJSON(t, c, issuer+"/.well-known/openid-configuration", &d)
	return d
}

func jwks(t *testing.T, c *http.Client, u string) jose.JSONWebKeySet {
	t.Helper()
	var set jose.JSONWebKeySet
	getJSON(t, c, u, &set)
	return set
}

// verify checks a token as a strict verifier does, against the keys published.
func verify(t *testing.T, c *http.Client, s *Server, tok, audience string) (jwt.MapClaims, error) {
	t.Helper()
	d := discovery(t, c, s.URL())
	keys := jwks(t, c, d.JwksURI)
	claims := jwt.MapClaims{}
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{ES256, RS256}), jwt.WithIssuer(d.Issuer),
		jwt.WithAudience(audience), jwt.WithExpirationRequired(), jwt.WithIssuedAt()).
		ParseWithClaims(tok, claims, func(tk *jwt.Token) (any, error) {
			kid, _ := tk.Header["kid"].(string)
			for _, k := range keys.Key(kid) {
				if k.Algorithm == tk.Method.Alg() {
					return k.Key, nil
				}
			}
			return nil, errors.New("unknown key")
		})
	return claims, err
}

// ask posts to the token endpoint and gives the status and the answer.
func ask(t *testing.T, s *Server, form url.Values, basic ...string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.TokenURL(), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if len(basic) == 2 {
		req.SetBasicAuth(basic[0], basic[1])
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer := map[string]any{}
	if err := json.Unmarshal(body, &answer); err != nil {
		answer["text"] = string(body)
	}
	return resp.StatusCode, answer
}

func clientCredentials(scopes ...string) url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(scopes, " ")}}
}

func jwtBearer(assertion string, scopes ...string) url.Values {
	return url.Values{"grant_type": {string(oidc.GrantTypeBearer)}, "assertion": {assertion}, "scope": {strings.Join(scopes, " ")}}
}

// assertion signs one with a user's key file.
func assertion(t *testing.T, keyFile []byte, audience string, change func(*oidc.JWTProfileAssertionClaims)) string {
	t.Helper()
	c, err := oidc.NewJWTProfileAssertionFromFileData(keyFile, []string{audience})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(c)
	}
	a, err := oidc.GenerateJWTProfileToken(c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func keyFile(t *testing.T, s *Server, user string) []byte {
	t.Helper()
	data, err := s.KeyFile(user)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mint(t *testing.T, s *Server, user string, o MintOptions) string {
	t.Helper()
	tok, err := s.Mint(user, o)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func writeTemp(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := t.TempDir() + "/" + name
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func shortContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

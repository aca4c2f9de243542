package issuer

import (
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/zitadel/oidc/v3/pkg/oidc"
)

func TestTokensSayWhatZitadelsSay(t *testing.T) {
	const foreign = "999"
	all := []string{"openid", AudienceScope(DefaultProjectID), ScopeProjectsRoles}
	for _, alg := range []string{ES256, RS256} {
		s := start(t, Options{Algorithm: alg, Users: []User{admin, device}})
		for _, tc := range []struct {
			name   string
			scopes []string
			aud    []string // of the token; CLIENT stands for the client id
			roles  bool
		}{
			{"audience and roles asked", all, []string{DefaultProjectID}, true},
			{"roles not asked", all[:2], []string{DefaultProjectID}, false},
			{"audience not asked", []string{"openid", ScopeProjectsRoles}, []string{"CLIENT"}, false},
			{"nothing asked", nil, []string{"CLIENT"}, false},
			{"any project's audience but no roles there", []string{AudienceScope(foreign), ScopeProjectsRoles}, []string{foreign}, false},
			{"two projects", append(all, AudienceScope(foreign)), []string{DefaultProjectID, foreign}, true},
			{"asked twice", append(all, all...), []string{DefaultProjectID}, true},
			{"empty project", []string{"urn:zitadel:iam:org:project:id::aud"}, []string{"CLIENT"}, false},
		} {
			for _, grant := range []string{"client_credentials", "client_credentials by post", "jwt-bearer"} {
				t.Run(alg+"/"+grant+"/"+tc.name, func(t *testing.T) {
					u, status, answer := admin, 0, map[string]any(nil)
					switch grant {
					case "client_credentials":
						status, answer = ask(t, s, clientCredentials(tc.scopes...), admin.Name, admin.ClientSecret)
					case "client_credentials by post":
						form := clientCredentials(tc.scopes...)
						form.Set("client_id", admin.Name)
						form.Set("client_secret", admin.ClientSecret)
						status, answer = ask(t, s, form)
					default:
						u = device
						status, answer = ask(t, s, jwtBearer(assertion(t, keyFile(t, s, device.Name), s.URL(), nil), tc.scopes...))
					}
					if status != http.StatusOK {
						t.Fatalf("status %d: %v", status, answer)
					}
					if answer["token_type"] != "Bearer" || answer["expires_in"] != (12*time.Hour).Seconds() {
						t.Errorf("answer %v, %v", answer["token_type"], answer["expires_in"])
					}
					aud := append([]string(nil), tc.aud...)
					if aud[0] == "CLIENT" {
						aud[0] = u.Name
					}
					tok := answer["access_token"].(string)
					claims, err := verify(t, httpClient, s, tok, aud[0])
					if err != nil {
						t.Fatal(err)
					}
					if got, _ := claims.GetAudience(); !reflect.DeepEqual([]string(got), aud) {
						t.Errorf("aud %v, want %v", got, aud)
					}
					if claims["sub"] != s.UserID(u.Name) || claims["client_id"] != u.Name || claims["iss"] != s.URL() {
						t.Errorf("claims %v", claims)
					}
					if jti, _ := claims["jti"].(string); jti == "" {
						t.Error("no jti")
					}
					iat, _ := claims.GetIssuedAt()
					nbf, _ := claims.GetNotBefore()
					exp, _ := claims.GetExpirationTime()
					if iat == nil || nbf == nil || exp == nil || exp.Sub(iat.Time) != 12*time.Hour || !nbf.Equal(iat.Time) {
						t.Errorf("iat %v, nbf %v, exp %v", iat, nbf, exp)
					}
					want := map[string]any{}
					for _, r := range u.Roles {
						want[r] = map[string]any{DefaultOrgID: DefaultOrgDomain}
					}
					got, has := claims["urn:zitadel:iam:org:project:"+DefaultProjectID+":roles"]
					if has != tc.roles || has && !reflect.DeepEqual(got, any(want)) {
						t.Errorf("roles claim %v, want %v: %v", got, tc.roles, want)
					}
					for k := range claims {
						if strings.HasSuffix(k, ":roles") && k != RolesClaim(DefaultProjectID) {
							t.Errorf("unexpected claim %s", k)
						}
					}
					head, _, _ := strings.Cut(tok, ".")
					if raw, _ := jwt.NewParser().DecodeSegment(head); !strings.Contains(string(raw), `"alg":"`+alg+`"`) {
						t.Errorf("header %s", raw)
					}
				})
			}
		}
	}
}

func TestBadAssertionsAreRefused(t *testing.T) {
	s := start(t, Options{Users: []User{admin, device, {Name: "device-no-key"}}})
	other := start(t, Options{Users: []User{device}})
	good, foreign, adminKey := keyFile(t, s, device.Name), keyFile(t, other, device.Name), keyFile(t, s, admin.Name)
	type claims = oidc.JWTProfileAssertionClaims
	for _, tc := range []struct {
		name      string
		assertion string
		says      string
	}{
		{"key of another issuer", assertion(t, foreign, s.URL(), nil), "no such key"},
		{"wrong key under the right id", assertion(t, good, s.URL(), func(c *claims) {
			f, _ := oidc.NewJWTProfileAssertionFromFileData(foreign, nil)
			c.PrivateKey = f.PrivateKey
		}), "invalid signature"},
		{"key of another user", assertion(t, adminKey, s.URL(), func(c *claims) { c.Issuer, c.Subject = device.ID, device.ID }), "no such key"},
		{"another user's subject", assertion(t, adminKey, s.URL(), func(c *claims) { c.Subject = device.ID }), "delegation"},
		{"wrong audience", assertion(t, good, "https://elsewhere.example", nil), "audience"},
		{"expired", assertion(t, good, s.URL(), func(c *claims) { c.Expiration = oidc.FromTime(time.Now().Add(-time.Minute)) }), "expired"},
		{"older than an hour", assertion(t, good, s.URL(), func(c *claims) { c.IssuedAt = oidc.FromTime(time.Now().Add(-2 * time.Hour)) }), "old"},
		{"from the future", assertion(t, good, s.URL(), func(c *claims) { c.IssuedAt = oidc.FromTime(time.Now().Add(time.Hour)) }), "future"},
		{"unknown user", assertion(t, good, s.URL(), func(c *claims) { c.Issuer, c.Subject = "42", "42" }), "no such user"},
		{"user name for id", assertion(t, good, s.URL(), func(c *claims) { c.Issuer, c.Subject = device.Name, device.Name }), "no such user"},
		{"user without a key", assertion(t, good, s.URL(), func(c *claims) {
			c.Issuer, c.Subject = s.UserID("device-no-key"), s.UserID("device-no-key")
		}), "no such key"},
		{"unsigned", unsigned(t, s), "algorithm"},
		{"not a JWT", "garbage", "segments"},
		{"an access token of the issuer", mint(t, s, device.Name, MintOptions{Audience: []string{s.URL()}}), ""},
		{"empty", "", "assertion missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, answer := ask(t, s, jwtBearer(tc.assertion, "openid"))
			if status != http.StatusBadRequest || answer["access_token"] != nil {
				t.Fatalf("status %d: %v", status, answer)
			}
			if text, _ := answer["error_description"].(string); !strings.Contains(text, tc.says) {
				t.Errorf("says %q, want %q", text, tc.says)
			}
		})
	}
	// and the right one is taken still
	if status, answer := ask(t, s, jwtBearer(assertion(t, good, s.URL(), nil))); status != http.StatusOK {
		t.Fatalf("status %d: %v", status, answer)
	}
	if !s.RemoveUser(device.Name) || s.RemoveUser(device.Name) {
		t.Error("RemoveUser does not say whether there was one")
	}
	if status, answer := ask(t, s, jwtBearer(assertion(t, good, s.URL(), nil))); status != http.StatusBadRequest {
		t.Fatalf("removed user: status %d: %v", status, answer)
	}
}

func unsigned(t *testing.T, s *Server) string {
	t.Helper()
	tok, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{
		"iss": device.ID, "sub": device.ID, "aud": s.URL(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestBadRequestsAreRefused(t *testing.T) {
	s := start(t, Options{Users: []User{admin, device}})
	post := func(change func(url.Values)) url.Values {
		f := clientCredentials("openid")
		if change != nil {
			change(f)
		}
		return f
	}
	for _, tc := range []struct {
		name   string
		form   url.Values
		basic  []string
		status int
	}{
		{"wrong secret", post(nil), []string{admin.Name, "wrong"}, 401},
		{"empty secret", post(nil), []string{admin.Name, ""}, 401},
		{"unknown client", post(nil), []string{"nobody", "x"}, 401},
		{"id for name", post(nil), []string{s.UserID(admin.Name), admin.ClientSecret}, 401},
		{"user without a secret", post(nil), []string{device.Name, ""}, 401},
		{"no client", post(nil), nil, 400},
		{"client assertion", post(func(f url.Values) {
			f.Set("client_assertion", "x")
			f.Set("client_assertion_type", oidc.ClientAssertionTypeJWTAssertion)
		}), nil, 401},
		{"no grant", url.Values{}, nil, 400},
		{"unknown grant", url.Values{"grant_type": {"magic"}}, nil, 400},
		{"authorization code", post(func(f url.Values) { f.Set("grant_type", "authorization_code") }), []string{admin.Name, admin.ClientSecret}, 400},
		{"refresh token", post(func(f url.Values) { f.Set("grant_type", "refresh_token") }), []string{admin.Name, admin.ClientSecret}, 400},
		{"body too large", post(func(f url.Values) { f.Set("x", strings.Repeat("x", maxBody)) }), []string{admin.Name, admin.ClientSecret}, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, answer := ask(t, s, tc.form, tc.basic...)
			if status != tc.status || answer["access_token"] != nil || answer["error"] == nil {
				t.Errorf("status %d, want %d: %v", status, tc.status, answer)
			}
		})
	}
	t.Run("secrets in a URL", func(t *testing.T) {
		resp, err := httpClient.Get(s.TokenURL() + "?grant_type=client_credentials&client_id=admin&client_secret=" + admin.ClientSecret)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("status %s", resp.Status)
		}
	})
	t.Run("no CORS", func(t *testing.T) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.JWKSURL(), nil)
		req.Header.Set("Origin", "https://evil.example")
		resp, err := httpClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if h := resp.Header.Get("Access-Control-Allow-Origin"); h != "" {
			t.Errorf("Access-Control-Allow-Origin: %s", h)
		}
	})
}

func TestMintedTokensDifferAsAsked(t *testing.T) {
	s := start(t, Options{Users: []User{admin}})
	tomorrow := time.Now().Add(24 * time.Hour)
	for _, tc := range []struct {
		name string
		o    MintOptions
		says string // of the verifier; empty: valid
		look func(*testing.T, jwt.MapClaims)
	}{
		{name: "as issued", look: func(t *testing.T, c jwt.MapClaims) {
			if c[RolesClaim(DefaultProjectID)] == nil {
				t.Error("no roles")
			}
		}},
		{name: "expired", o: MintOptions{Lifetime: -time.Minute}, says: "expired"},
		{name: "short", o: MintOptions{Lifetime: time.Minute}},
		{name: "wrong audience", o: MintOptions{Audience: []string{"x"}}, says: "audience"},
		{name: "not yet valid", o: MintOptions{NotBefore: tomorrow}, says: "not valid yet"},
		{name: "issued in the future", o: MintOptions{IssuedAt: tomorrow}, says: "used before issued"},
		{name: "other key", o: MintOptions{OtherKey: true}, says: "signature is invalid"},
		{name: "other key of another kind", o: MintOptions{OtherKey: true, Algorithm: RS256}, says: "unknown key"},
		{name: "unknown key", o: MintOptions{KeyID: "nope"}, says: "unknown key"},
		{name: "other issuer", o: MintOptions{Claims: map[string]any{"iss": "https://evil.example"}}, says: "issuer"},
		{name: "no expiry", o: MintOptions{Claims: map[string]any{"exp": nil}}, says: "exp claim is required"},
		{name: "extra claims", o: MintOptions{Claims: map[string]any{"roles": []string{"a"}, "sub": "7"}}, look: func(t *testing.T, c jwt.MapClaims) {
			if c["sub"] != "7" || !reflect.DeepEqual(c["roles"], []any{"a"}) {
				t.Errorf("claims %v", c)
			}
		}},
		{name: "other roles", o: MintOptions{Roles: []string{"device"}}, look: func(t *testing.T, c jwt.MapClaims) {
			if m, _ := c[RolesClaim(DefaultProjectID)].(map[string]any); len(m) != 1 || m["device"] == nil {
				t.Errorf("roles %v", m)
			}
		}},
		{name: "no roles", o: MintOptions{Roles: []string{}}, look: func(t *testing.T, c jwt.MapClaims) {
			if c[RolesClaim(DefaultProjectID)] != nil {
				t.Error("has roles")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			claims, err := verify(t, httpClient, s, mint(t, s, admin.Name, tc.o), DefaultProjectID)
			if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Fatalf("verifier says %v, want %q", err, tc.says)
			}
			if tc.look != nil {
				tc.look(t, claims)
			}
		})
	}
	if _, err := s.Mint("nobody", MintOptions{}); err == nil {
		t.Error("token for an unknown user")
	}
}

package issuer

import (
	"context"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"time"

	zcrypto "github.com/zitadel/oidc/v3/pkg/crypto"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// Paths as Zitadel has them.
const (
	tokenPath = "/oauth/v2/token"
	keysPath  = "/oauth/v2/keys"
)

// provider answers the requests that the library has parsed.
type provider struct {
	op.UnimplementedServer
	srv      *Server
	verifier *op.JWTProfileVerifier
}

var _ op.Server = (*provider)(nil)

func newHandler(s *Server, middleware ...func(http.Handler) http.Handler) http.Handler {
	p := &provider{
		srv: s,
		// An assertion at most an hour old, by a clock at most a second off: Zitadel's own values.
		verifier: op.NewJWTProfileVerifier(s.users, s.url, time.Hour, time.Second),
	}
	return op.RegisterServer(p, op.Endpoints{
		Token:   op.NewEndpoint(tokenPath),
		JwksURI: op.NewEndpoint(keysPath),
	},
		op.WithHTTPMiddleware(middleware...),
		// No browser has business here; the default lets any web page read tokens.
		op.WithServerCORSOptions(nil),
	)
}

func (p *provider) Health(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	return op.NewResponse(op.Status{Status: "ok"}), nil
}

func (p *provider) Ready(ctx context.Context, r *op.Request[struct{}]) (*op.Response, error) {
	return p.Health(ctx, r)
}

func (p *provider) Discovery(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	algs := []string{ES256, RS256}
	return op.NewResponse(&oidc.DiscoveryConfiguration{
		Issuer:                            p.srv.url,
		TokenEndpoint:                     p.srv.url + tokenPath,
		JwksURI:                           p.srv.url + keysPath,
		ScopesSupported:                   []string{oidc.ScopeOpenID},
		ResponseTypesSupported:            []string{"none"}, // required field; there is no authorization endpoint
		GrantTypesSupported:               []oidc.GrantType{oidc.GrantTypeClientCredentials, oidc.GrantTypeBearer},
		SubjectTypesSupported:             []string{"public"},
		IDTokenSigningAlgValuesSupported:  algs,
		TokenEndpointAuthMethodsSupported: []oidc.AuthMethod{oidc.AuthMethodBasic, oidc.AuthMethodPost},
		ClaimsSupported:                   []string{"sub", "aud", "exp", "iat", "nbf", "iss", "jti", "client_id"},
	}), nil
}

func (p *provider) Keys(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	return op.NewResponse(p.srv.keys.jwks()), nil
}

// JWTProfile is the grant of machine keys.
func (p *provider) JWTProfile(ctx context.Context, r *op.Request[oidc.JWTProfileGrantRequest]) (*op.Response, error) {
	assertion, err := op.VerifyJWTAssertion(ctx, r.Data.Assertion, p.verifier)
	if err != nil {
		// The parent says why, for the log of who runs the fixture and for the
		// client: these are the library's fixed texts.
		return nil, p.refuse("jwt-bearer", oidc.ErrInvalidGrant().WithParent(err).WithDescription("%s", err.Error()))
	}
	a, ok := p.srv.users.get(assertion.Subject)
	if !ok || a.ID != assertion.Subject {
		return nil, p.refuse("jwt-bearer", oidc.ErrInvalidGrant().WithDescription("no such user"))
	}
	return p.issue("jwt-bearer", a.User, r.Data.Scope)
}

// VerifyClient checks the name and secret of the client credentials grant.
func (p *provider) VerifyClient(_ context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	refuse := func(why string) error {
		// One text outside whatever the reason, so that names cannot be guessed.
		p.srv.log.Warn("token refused", "grant", "client_credentials", "client_id", r.Data.ClientID, "reason", why)
		return op.NewStatusError(oidc.ErrInvalidClient().WithDescription("unknown client or wrong secret"), http.StatusUnauthorized)
	}
	if r.Data.ClientAssertion != "" {
		return nil, refuse("client assertions are not taken")
	}
	a, ok := p.srv.users.get(r.Data.ClientID)
	switch {
	case !ok || a.Name != r.Data.ClientID:
		return nil, refuse("no such user")
	case a.ClientSecret == "":
		return nil, refuse("user has no client secret")
	case subtle.ConstantTimeCompare([]byte(a.ClientSecret), []byte(r.Data.ClientSecret)) != 1:
		return nil, refuse("wrong secret")
	}
	return machineClient{user: a.User}, nil
}

func (p *provider) ClientCredentialsExchange(_ context.Context, r *op.ClientRequest[oidc.ClientCredentialsRequest]) (*op.Response, error) {
	c, ok := r.Client.(machineClient)
	if !ok {
		return nil, oidc.ErrInvalidClient()
	}
	return p.issue("client_credentials", c.user, r.Data.Scope)
}

func (p *provider) refuse(grant string, err *oidc.Error) error {
	p.srv.log.Warn("token refused", "grant", grant, "reason", err.Description)
	return err
}

func (p *provider) issue(grant string, u User, scopes []string) (*op.Response, error) {
	claims := p.srv.claimsFor(u, scopes)
	tok, err := zcrypto.Sign(claims, p.srv.keys.current().signer)
	if err != nil {
		return nil, oidc.ErrServerError().WithParent(err).WithDescription("signing failed")
	}
	p.srv.log.LogAttrs(context.Background(), slog.LevelInfo, "token issued", slog.String("grant", grant),
		slog.String("client_id", u.Name), slog.String("sub", u.ID), slog.Any("aud", []string(claims.Audience)))
	resp := op.NewResponse(&oidc.AccessTokenResponse{
		AccessToken: tok,
		TokenType:   oidc.BearerToken,
		ExpiresIn:   uint64(p.srv.opts.TokenLifetime / time.Second),
		Scope:       scopes,
	})
	resp.Header.Set("Cache-Control", "no-store") // RFC 6749, section 5.1
	return resp, nil
}

// machineClient is a user seen as an OAuth client. The library asks for the
// grants and the way of authentication only; the rest belongs to logins.
type machineClient struct{ user User }

var _ op.Client = machineClient{}

func (c machineClient) GetID() string             { return c.user.Name }
func (machineClient) AuthMethod() oidc.AuthMethod { return oidc.AuthMethodBasic }
func (machineClient) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials}
}
func (machineClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (machineClient) ApplicationType() op.ApplicationType { return op.ApplicationTypeWeb }

func (machineClient) RedirectURIs() []string               { return nil }
func (machineClient) PostLogoutRedirectURIs() []string     { return nil }
func (machineClient) ResponseTypes() []oidc.ResponseType   { return nil }
func (machineClient) LoginURL(string) string               { return "" }
func (machineClient) IDTokenLifetime() time.Duration       { return 0 }
func (machineClient) DevMode() bool                        { return false }
func (machineClient) IsScopeAllowed(string) bool           { return true }
func (machineClient) IDTokenUserinfoClaimsAssertion() bool { return false }
func (machineClient) ClockSkew() time.Duration             { return 0 }

func (machineClient) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}

func (machineClient) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}

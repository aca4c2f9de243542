package issuer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	zcrypto "github.com/zitadel/oidc/v3/pkg/crypto"
	"github.com/zitadel/oidc/v3/pkg/oidc"
)

// Scopes and claims of Zitadel.
const (
	// ScopeProjectsRoles asks for the roles on the projects in the audience.
	ScopeProjectsRoles = "urn:zitadel:iam:org:projects:roles"

	scopeProjectPrefix  = "urn:zitadel:iam:org:project:id:"
	scopeAudienceSuffix = ":aud"
)

// AudienceScope is the scope that puts a project into a token's audience.
func AudienceScope(projectID string) string {
	return scopeProjectPrefix + projectID + scopeAudienceSuffix
}

// RolesClaim is the name of the claim that holds the roles on a project.
func RolesClaim(projectID string) string {
	return "urn:zitadel:iam:org:project:" + projectID + ":roles"
}

// projectsOf gives the projects whose audience the scopes ask for.
func projectsOf(scopes []string) []string {
	var ids []string
	for _, s := range scopes {
		id, ok := strings.CutPrefix(s, scopeProjectPrefix)
		if !ok {
			continue
		}
		if id, ok = strings.CutSuffix(id, scopeAudienceSuffix); ok && id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// claimsFor is what a token of u says when asked with these scopes.
func (s *Server) claimsFor(u User, scopes []string) *oidc.AccessTokenClaims {
	projects := projectsOf(scopes)
	// Without an audience the library puts in the client id, for Zitadel too.
	c := oidc.NewAccessTokenClaims(s.url, u.ID, projects, time.Now().Add(s.opts.TokenLifetime), uuid.NewString(), u.Name, 0)
	if slices.Contains(scopes, ScopeProjectsRoles) && slices.Contains(projects, s.opts.ProjectID) && len(u.Roles) > 0 {
		c.Claims = map[string]any{RolesClaim(s.opts.ProjectID): s.rolesValue(u.Roles)}
	}
	return c
}

func (s *Server) rolesValue(roles []string) map[string]any {
	v := map[string]any{}
	for _, r := range roles {
		v[r] = map[string]string{s.opts.OrgID: s.opts.OrgDomain}
	}
	return v
}

// MintOptions makes a token that differs from what the user would get from the
// token endpoint with the scopes openid, [AudienceScope] of the issuer's own
// project and [ScopeProjectsRoles]. The zero value changes nothing.
type MintOptions struct {
	// Scopes in place of those named above.
	Scopes []string
	// Audience in place of the one the scopes give.
	Audience []string
	// Roles on Options.ProjectID in place of the user's. Empty, not nil: none.
	Roles []string
	// Lifetime from now; negative: expired that long ago, and issued
	// Options.TokenLifetime before that. 0: Options.TokenLifetime.
	Lifetime time.Duration
	// IssuedAt and NotBefore in place of now.
	IssuedAt, NotBefore time.Time
	// Claims are set last. A nil value removes the claim.
	Claims map[string]any
	// OtherKey signs with a key made for this token alone under the id of the
	// current one: the signature is wrong.
	OtherKey bool
	// KeyID, if set, is the key id the token names in place of the right one.
	KeyID string
	// Algorithm of OtherKey, ES256 or RS256. Empty: the issuer's.
	Algorithm string
}

// Mint makes a token of a user, named by name or id, without a request. It
// works whether the server is stopped or not.
func (s *Server) Mint(user string, o MintOptions) (string, error) {
	a, ok := s.users.get(user)
	if !ok {
		return "", fmt.Errorf("issuer: no user %q", user)
	}
	if o.Roles != nil {
		a.Roles = o.Roles
	}
	scopes := o.Scopes
	if scopes == nil {
		scopes = []string{oidc.ScopeOpenID, AudienceScope(s.opts.ProjectID), ScopeProjectsRoles}
	}
	c := s.claimsFor(a.User, scopes)
	if o.Audience != nil {
		c.Audience = o.Audience
	}
	if o.Lifetime != 0 {
		c.Expiration = oidc.FromTime(time.Now().Add(o.Lifetime))
	}
	if o.Lifetime < 0 {
		born := oidc.FromTime(time.Now().Add(o.Lifetime - s.opts.TokenLifetime))
		c.IssuedAt, c.NotBefore = born, born
	}
	if !o.IssuedAt.IsZero() {
		c.IssuedAt = oidc.FromTime(o.IssuedAt)
	}
	if !o.NotBefore.IsZero() {
		c.NotBefore = oidc.FromTime(o.NotBefore)
	}
	payload, err := override(c, o.Claims)
	if err != nil {
		return "", fmt.Errorf("issuer: token of user %q: %w", a.Name, err)
	}
	key, err := s.mintKey(o)
	if err != nil {
		return "", fmt.Errorf("issuer: token of user %q: %w", a.Name, err)
	}
	tok, err := zcrypto.SignPayload(payload, key.signer)
	if err != nil {
		return "", fmt.Errorf("issuer: token of user %q: %w", a.Name, err)
	}
	return tok, nil
}

func (s *Server) mintKey(o MintOptions) (*signingKey, error) {
	key := s.keys.current()
	private, id := key.private, key.id
	if o.OtherKey {
		alg := o.Algorithm
		if alg == "" {
			alg = s.opts.Algorithm
		}
		var err error
		if private, err = newKey(alg); err != nil {
			return nil, err
		}
	}
	if o.KeyID != "" {
		id = o.KeyID
	}
	if !o.OtherKey && o.KeyID == "" {
		return key, nil
	}
	return newSigningKey(private, id)
}

// override sets and removes claims.
func override(c *oidc.AccessTokenClaims, claims map[string]any) ([]byte, error) {
	payload, err := json.Marshal(c)
	if err != nil || len(claims) == 0 {
		return payload, err
	}
	all := map[string]any{}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber() // times must come out as they went in
	if err := dec.Decode(&all); err != nil {
		return nil, err
	}
	for k, v := range claims {
		if v == nil {
			delete(all, k)
		} else {
			all[k] = v
		}
	}
	return json.Marshal(all)
}

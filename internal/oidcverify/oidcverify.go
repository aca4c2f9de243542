// Package oidcverify verifies the tokens of one OpenID Connect issuer.
//
// A [Verifier] holds the public keys of its issuer (the JWKS) and checks tokens
// against them: signature (RS256 and ES256, nothing else), issuer, audience,
// expiry, not-before. It is made to stand in front of a login storm and beside an
// issuer that is slow, down, or turning its keys:
//
//	v, err := oidcverify.New(oidcverify.IssuerConfig{URL: "https://zitadel.example", Audience: "277..."}, logger)
//	defer v.Close()
//	go v.Run(ctx)                           // loads the keys and keeps them fresh
//	claims, err := v.Verify(ctx, token)
//	var e *oidcverify.Error
//	if errors.As(err, &e) { log(e.Reason) } // expired, signature, audience, unknown_key, ...
//
// What costs nothing is checked first: size, form, algorithm, issuer and expiry of a
// token are looked at before any key is fetched for it, so that junk never causes
// traffic to the issuer. Keys are fetched
//
//   - by Run, at once and then every Refresh;
//   - by a token whose key id is not known, at most once per MinFetchInterval whatever
//     arrives, shared by all who wait for it, and on a context of its own: the caller
//     who gives up does not take the fetch away from the others.
//
// A bad signature never causes a fetch. A key id that the issuer did not have is
// remembered for NegativeTTL and does not cause another fetch in that time; a fetch for
// any other reason still brings the key in, so a rotation is never hidden. When a fetch
// fails the old keys stay in use.
//
// With several issuers, make one Verifier each and choose by [PeekIssuer].
package oidcverify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Defaults of the zero values of [IssuerConfig].
const (
	DefaultRefresh          = 5 * time.Minute
	DefaultLeeway           = 30 * time.Second
	DefaultFetchTimeout     = 5 * time.Second
	DefaultMinFetchInterval = 2 * time.Second
	DefaultNegativeTTL      = 10 * time.Second
	DefaultMaxWaiters       = 32
)

// MaxTokenBytes is the largest token that is looked at. NATS itself takes no CONNECT line
// beyond its max_control_line (16 KiB in this project's configuration).
const MaxTokenBytes = 16 << 10

// IssuerConfig says which issuer is trusted and how its keys are reached. Nothing in it
// may change after New.
type IssuerConfig struct {
	// URL is the issuer exactly as its tokens name it in "iss" and its discovery document
	// in "issuer": no trailing slash is added or removed. Required. https, or http for a
	// loopback host (or with Insecure).
	URL string
	// Audience must be among the "aud" of each token. Required.
	Audience string
	// CAFile is a PEM file with the certificate authorities of the issuer; read by New.
	// Empty means those of the system.
	CAFile string
	// TokenFile holds a bearer token for the issuer's own endpoints (a Kubernetes API
	// server asks for one). It is read again for each request, as it rotates. It is sent
	// to the hosts of URL and JWKSURL only, never to a host that a discovery document names.
	TokenFile string
	// JWKSURL is where the keys are; empty means wherever the discovery document says.
	// When set, no discovery is made.
	JWKSURL string
	// Insecure allows http to hosts that are not loopback.
	Insecure bool
	// Refresh is the time between two periodic fetches of Run. Default 5 min.
	Refresh time.Duration
	// Leeway is the clock difference that is forgiven in exp and nbf. Default 30 s.
	Leeway time.Duration
	// FetchTimeout bounds one fetch, discovery and keys together. Default 5 s.
	FetchTimeout time.Duration
	// MinFetchInterval is the least time between two fetches caused by tokens. Default 2 s.
	MinFetchInterval time.Duration
	// NegativeTTL is how long a key id that the issuer did not have causes no further
	// fetch. Default 10 s.
	NegativeTTL time.Duration
	// MaxWaiters is how many Verify calls may wait for a fetch at once; more are refused
	// at once with issuer_unavailable, so that one slow issuer cannot occupy all the
	// workers of its caller. Default 32.
	MaxWaiters int
	// Now is the clock that token times are compared with. nil means time.Now.
	Now func() time.Time

	transport http.RoundTripper // tests
}

// Claims are what a verified token says.
type Claims struct {
	Issuer   string    // "iss", equal to IssuerConfig.URL
	Subject  string    // "sub", never empty
	Audience []string  // "aud"; contains IssuerConfig.Audience
	Expiry   time.Time // "exp", never zero; up to Leeway in the past
	IssuedAt time.Time // "iat", zero if the token has none
	// Raw is the whole claim set as decoded JSON.
	Raw map[string]any
}

// Verifier verifies tokens of one issuer. Safe for concurrent use.
type Verifier struct {
	cfg    IssuerConfig
	parser *jwt.Parser
	cache  *cache
}

// New checks cfg and returns a verifier without keys; it makes no request. The keys come
// with Run or with the first token. Close it when done.
func New(cfg IssuerConfig, logger *slog.Logger) (*Verifier, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if cfg.URL == "" {
		return nil, errors.New("oidc issuer: url is empty; set it to the issuer's \"iss\"")
	}
	if cfg.Audience == "" {
		return nil, fmt.Errorf("oidc issuer %s: audience is empty; without one a token made for any other service would be accepted", cfg.URL)
	}
	def(&cfg.Refresh, DefaultRefresh)
	def(&cfg.Leeway, DefaultLeeway)
	def(&cfg.FetchTimeout, DefaultFetchTimeout)
	def(&cfg.MinFetchInterval, DefaultMinFetchInterval)
	def(&cfg.NegativeTTL, DefaultNegativeTTL)
	def(&cfg.MaxWaiters, DefaultMaxWaiters)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	f, err := newFetcher(cfg)
	if err != nil {
		shown := cfg.URL
		if u, err := url.Parse(shown); err == nil {
			shown = u.Redacted()
		}
		return nil, fmt.Errorf("oidc issuer %s: %w", shown, err)
	}
	return &Verifier{
		cfg: cfg,
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{"RS256", "ES256"}),
			jwt.WithIssuer(cfg.URL),
			jwt.WithAudience(cfg.Audience),
			jwt.WithExpirationRequired(),
			jwt.WithLeeway(cfg.Leeway),
			jwt.WithTimeFunc(cfg.Now),
		),
		cache: newCache(cfg, f.fetch, logger.With("issuer", cfg.URL)),
	}, nil
}

func def[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// URL is the issuer this verifier trusts.
func (v *Verifier) URL() string { return v.cfg.URL }

// Run fetches the keys at once and then every Refresh (sooner after a failure), until ctx
// is done; it returns ctx's error. Verify works without it, but then only tokens with
// unknown key ids bring new keys and a withdrawn key is never dropped.
func (v *Verifier) Run(ctx context.Context) error { return v.cache.run(ctx) }

// Load fetches the keys now, or joins a fetch under way, and waits for its end, no longer
// than ctx. The fetch itself goes on when ctx ends.
func (v *Verifier) Load(ctx context.Context) error { return v.cache.refresh(ctx) }

// Close cancels a fetch under way and waits for its goroutine. Verify then knows the keys
// it has and fetches none. Idempotent.
func (v *Verifier) Close() { v.cache.close() }

// Stats tells the state of the key cache.
func (v *Verifier) Stats() Stats { return v.cache.stats() }

// Verify checks token and returns what it says. It waits, no longer than ctx, only where
// the token's key id is not known yet. The error is always an [*Error]; its text never
// contains the token.
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	p, err := peek(token)
	if err != nil {
		return Claims{}, err
	}
	if p.Issuer != v.cfg.URL {
		return Claims{}, fail(ReasonIssuer, "the token names issuer %s", Clip(p.Issuer))
	}
	if p.Alg != "RS256" && p.Alg != "ES256" {
		return Claims{}, fail(ReasonAlgorithm, "algorithm %s is not accepted, only RS256 and ES256", Clip(p.Alg))
	}
	if p.Critical {
		return Claims{}, fail(ReasonMalformed, "the token has critical header parameters, of which none is understood")
	}
	if p.Expiry.IsZero() {
		return Claims{}, fail(ReasonExpired, "the token has no usable expiry")
	}
	if now := v.cfg.Now(); !now.Before(p.Expiry.Add(v.cfg.Leeway)) {
		return Claims{}, fail(ReasonExpired, "the token expired %v ago", now.Sub(p.Expiry).Round(time.Second))
	}

	claims := jwt.MapClaims{}
	_, err = v.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		return v.cache.key(ctx, t.Method.Alg(), kid)
	})
	if err != nil {
		return Claims{}, classify(err)
	}
	return toClaims(claims)
}

func toClaims(m jwt.MapClaims) (Claims, error) {
	c := Claims{Raw: m}
	var err error
	if c.Subject, err = m.GetSubject(); err != nil || strings.TrimSpace(c.Subject) == "" {
		return Claims{}, fail(ReasonMalformed, "the token has no subject")
	}
	c.Issuer, _ = m.GetIssuer()
	aud, _ := m.GetAudience()
	c.Audience = aud
	exp, err := m.GetExpirationTime()
	if err != nil || exp == nil {
		return Claims{}, fail(ReasonExpired, "the token has no usable expiry")
	}
	c.Expiry = exp.Time
	if iat, err := m.GetIssuedAt(); err == nil && iat != nil {
		c.IssuedAt = iat.Time
	}
	return c, nil
}

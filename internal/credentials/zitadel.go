package credentials

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/zitadel/oidc/v3/pkg/client"
	"github.com/zitadel/oidc/v3/pkg/client/profile"
)

const (
	// fetchTimeout bounds one renewal: discovery and grant, each with the HTTP
	// client's own requestTimeout.
	fetchTimeout   = 20 * time.Second
	requestTimeout = 10 * time.Second
	// retryAfter is how long a still valid token is given out after a renewal
	// failed, before the issuer is tried again.
	retryAfter = 10 * time.Second
	// minTokenAge is how old a token must be for Invalidate to drop it.
	minTokenAge = 30 * time.Second
	// reusedFor is the share of a token's life, as 1/n, in which it is given out
	// again. An agent renews its connection after two thirds of that connection's
	// life, which the callout ends up to a tenth before the token's: a token that is
	// 59 % old must not come back from here, or the new connection would end with
	// the old one.
	reusedFor = 2
)

// zitadelKey exchanges a machine key for tokens at the issuer. One caller at a
// time does so, with its own context; the others wait for what it gets.
type zitadelKey struct {
	cfg Config
	log *slog.Logger
	key secretFile
	ca  secretFile
	now func() time.Time

	mu       sync.Mutex
	cred     Credential
	obtained time.Time
	renewAt  time.Time // from here on the next caller gets a new one
	endAt    time.Time // the end of it, by this machine's clock
	retryAt  time.Time // not before this, after a failure
	endpoint string    // from discovery; dropped on failure
	flight   *flight
}

// flight is a renewal under way; the fields are set before done is closed.
type flight struct {
	done      chan struct{}
	cred      Credential
	err       error
	abandoned bool // by the context of the caller that did it
}

func newZitadelKey(cfg Config, log *slog.Logger) *zitadelKey {
	return &zitadelKey{
		cfg: cfg,
		log: log,
		key: secretFile{key: "key_file", path: cfg.KeyFile, log: log},
		ca:  secretFile{key: "ca_file", path: cfg.CAFile, log: log, shared: true},
		now: time.Now,
	}
}

// String and GoString keep the kept token out of %v and %#v.
func (z *zitadelKey) String() string   { return z.cfg.String() }
func (z *zitadelKey) GoString() string { return z.cfg.String() }

// passed compares by the monotonic clock, which a change of the wall clock
// does not move, and by the wall clock, which goes on while a machine sleeps.
func passed(now, t time.Time) bool {
	return !now.Before(t) || !now.Round(0).Before(t.Round(0))
}

func (z *zitadelKey) Credential(ctx context.Context) (Credential, error) {
	for {
		z.mu.Lock()
		now := z.now()
		usable := z.cred.Token != "" && !passed(now, z.endAt)
		if usable && (!passed(now, z.renewAt) || !passed(now, z.retryAt)) {
			cred := z.cred
			z.mu.Unlock()
			return cred, nil
		}
		f := z.flight
		if f == nil {
			z.flight = &flight{done: make(chan struct{})}
			z.mu.Unlock()
			return z.renew(ctx)
		}
		z.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return Credential{}, z.explain(ctx.Err(), nil)
		}
		if !f.abandoned {
			return f.cred, f.err
		}
		// The other caller gave up, not the issuer: try with this context.
	}
}

// renew ends z.flight whatever happens.
func (z *zitadelKey) renew(ctx context.Context) (cred Credential, err error) {
	started := z.now()
	fetchCtx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	z.mu.Lock()
	f, endpoint := z.flight, z.endpoint
	z.mu.Unlock()
	err = errors.New("renewal of the token broke off") // seen by those who wait only if the next line panics
	var life time.Duration
	defer func() {
		z.mu.Lock()
		defer z.mu.Unlock()
		if err == nil {
			z.cred, z.obtained, z.endpoint = cred, started, endpoint
			z.renewAt, z.endAt, z.retryAt = started.Add(life/reusedFor), started.Add(life), time.Time{}
		} else {
			z.endpoint = "" // it may have moved
			now := z.now()
			if z.cred.Token != "" && !passed(now, z.endAt) {
				if ctx.Err() == nil {
					z.retryAt = now.Add(retryAfter)
					z.log.Warn("token could not be renewed: going on with the one at hand",
						"expires", z.cred.Expiry.UTC(), "retry_in", retryAfter, "error", err)
				}
				cred, err = z.cred, nil
			}
		}
		f.cred, f.err, f.abandoned = cred, err, err != nil && ctx.Err() != nil
		z.flight = nil
		close(f.done)
	}()
	cred, life, endpoint, err = z.fetch(fetchCtx, endpoint)
	return cred, err
}

// fetch asks the issuer for a token. The key and the CA are read each time, so
// that they may be replaced while the program runs.
func (z *zitadelKey) fetch(ctx context.Context, endpoint string) (_ Credential, life time.Duration, _ string, err error) {
	fail := func(err error) (Credential, time.Duration, string, error) { return Credential{}, 0, "", err }
	raw, err := z.key.read()
	if err != nil {
		return fail(err)
	}
	key, err := ParseKeyFile(raw)
	if err != nil {
		return fail(z.key.fail("%s: %w", z.cfg.KeyFile, err))
	}
	var roots *x509.CertPool
	if z.cfg.CAFile != "" {
		pem, err := z.ca.read()
		if err != nil {
			return fail(err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return fail(z.ca.fail("%s holds no certificate in PEM", z.cfg.CAFile))
		}
	}
	httpClient, seen := newHTTPClient(roots)
	defer httpClient.CloseIdleConnections()
	scopes := []string{
		"openid",
		"urn:zitadel:iam:org:project:id:" + z.cfg.ProjectID + ":aud",
		"urn:zitadel:iam:org:projects:roles",
	}
	// With an endpoint known this makes no request; without one, discovery.
	src, err := profile.NewJWTProfileTokenSource(ctx, z.cfg.Issuer, key.UserID, key.KeyID, []byte(key.Key), scopes,
		profile.WithHTTPClient(httpClient), profile.WithStaticTokenEndpoint(z.cfg.Issuer, endpoint))
	if err != nil {
		return fail(z.explain(err, seen))
	}
	if caller, ok := src.(client.TokenEndpointCaller); ok {
		endpoint = caller.TokenEndpoint()
		if err := checkURL(endpoint, z.cfg.Insecure); err != nil {
			return fail(z.explain(&badEndpointError{err}, seen))
		}
	}
	asked := time.Now()
	tok, err := src.TokenCtx(ctx)
	if err != nil {
		return fail(z.explain(err, seen))
	}
	c, err := decodeClaims(tok.AccessToken)
	if err != nil {
		return fail(z.explain(err, seen))
	}
	life = lifeOf(c, tok.Expiry.Sub(asked))
	if life <= 0 {
		return fail(z.explain(errNoLife, seen))
	}
	return Credential{User: z.cfg.Account, Token: tok.AccessToken, Expiry: c.Expiry}, life, endpoint, nil
}

// lifeOf is how long a token just issued lives: the shorter of what its claims
// say and what the answer around it says. Neither depends on this machine's
// clock, which may be wrong. 0: it does not say, or it is dead.
func lifeOf(c claims, expiresIn time.Duration) time.Duration {
	var life time.Duration
	if !c.Expiry.IsZero() && !c.IssuedAt.IsZero() {
		life = c.Expiry.Sub(c.IssuedAt)
		if life <= 0 {
			return 0
		}
	}
	// The library makes an answer without expires_in one of 0 s.
	if expiresIn >= time.Second && (life == 0 || expiresIn < life) {
		life = expiresIn
	}
	return life
}

func (z *zitadelKey) invalidate() {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.cred.Token != "" && passed(z.now(), z.obtained.Add(minTokenAge)) {
		z.cred = Credential{}
	}
}

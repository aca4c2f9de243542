package credentials

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
)

var (
	// ErrUnavailable is matched by errors of an issuer that could not be
	// reached or did not work: trying again later may help.
	ErrUnavailable = errors.New("issuer unavailable")
	// ErrRefused is matched by errors of an issuer that answered and gave no
	// usable token: somebody must change something first.
	ErrRefused = errors.New("issuer refused")
)

var errNoLife = errors.New("token without a life")

// badEndpointError is a token endpoint that an assertion must not be sent to.
type badEndpointError struct{ err error }

func (e *badEndpointError) Error() string { return e.err.Error() }

// seenResponse remembers what explain needs and the library does not tell.
type seenResponse struct {
	base   http.RoundTripper
	status int           // of the last answer; 0: none
	skew   time.Duration // the issuer's clock ahead of ours; only minutes mean anything
}

func (s *seenResponse) RoundTrip(r *http.Request) (*http.Response, error) {
	s.status = 0
	resp, err := s.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	s.status = resp.StatusCode
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		s.skew = time.Until(date).Round(time.Second)
	}
	return resp, nil
}

// CloseIdleConnections is what [http.Client.CloseIdleConnections] calls.
func (s *seenResponse) CloseIdleConnections() {
	if c, ok := s.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// newHTTPClient makes a client for one renewal: they are hours apart, so that
// nothing is gained by keeping connections.
func newHTTPClient(roots *x509.CertPool) (*http.Client, *seenResponse) {
	seen := &seenResponse{base: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: requestTimeout}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    requestTimeout,
		ResponseHeaderTimeout:  requestTimeout,
		MaxResponseHeaderBytes: 64 << 10,
	}}
	return &http.Client{
		Transport: seen,
		Timeout:   requestTimeout,
		// An assertion must not be carried to another place than the one named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, seen
}

// explain makes an error for people: which issuer, what happened, what to do.
// It never passes on what the library says of an answer's body, which may be a
// token.
func (z *zitadelKey) explain(err error, seen *seenResponse) error {
	fail := func(kind error, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", kind, z.cfg.Issuer, fmt.Errorf(format, args...))
	}
	status := 0
	if seen != nil {
		status = seen.status
	}
	var (
		oidcErr   *oidc.Error
		endpoint  *badEndpointError
		authority x509.UnknownAuthorityError
		netErr    net.Error
	)
	switch {
	case errors.Is(err, context.Canceled):
		return fail(ErrUnavailable, "gave up before it answered: %w", context.Canceled)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return fail(ErrUnavailable, "no answer in time: check that the issuer runs and can be reached from here: %w", context.DeadlineExceeded)
	case errors.As(err, &oidcErr) && status < 500:
		return fail(ErrRefused, "%s: %s%s", clean(string(oidcErr.ErrorType)), clean(oidcErr.Description), z.advice(seen))
	case status != 0 && status != http.StatusOK:
		kind, next := ErrUnavailable, "look at the issuer's log"
		switch {
		case status < 400:
			kind, next = ErrRefused, "redirects are not followed: set issuer to the final URL"
		case status == http.StatusNotFound:
			kind, next = ErrRefused, "check the URL, which must be the issuer's own name without a path of its API"
		}
		return fail(kind, "answered HTTP %d: %s", status, next)
	case errors.Is(err, oidc.ErrIssuerInvalid):
		return fail(ErrRefused, "calls itself by another name: set issuer to exactly the \"issuer\" of its %s", oidc.DiscoveryEndpoint)
	case errors.As(err, &endpoint):
		return fail(ErrRefused, "its token endpoint cannot be used: %w", endpoint)
	case errors.Is(err, errNotJWT):
		return fail(ErrRefused, "gave a token that is not a JWT: set the service user's access token type to JWT")
	case errors.Is(err, errNoLife):
		return fail(ErrRefused, "gave a token that has expired already or never does: check the token lifetime set at the issuer")
	case errors.As(err, &authority):
		return fail(ErrUnavailable, "its certificate is signed by an unknown authority: set ca_file to the PEM file of its CA")
	case status == 0:
		return fail(ErrUnavailable, "cannot be reached: %w: check that the issuer runs, the URL and the network", rootOf(err))
	default:
		return fail(ErrRefused, "gave an answer that is not understood: check that the URL is that of an OIDC issuer")
	}
}

// advice is what to do about a refused assertion.
func (z *zitadelKey) advice(seen *seenResponse) string {
	if skew := seen.skew; skew.Abs() > 30*time.Second {
		return fmt.Sprintf(": the issuer's clock is %v ahead of this machine's: set the clock", skew)
	}
	return fmt.Sprintf(": check that the key in %s belongs to this issuer and was not removed, and that project_id is right", z.cfg.KeyFile)
}

// rootOf drops the method and URL that net/http puts before an error.
func rootOf(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// clean makes text from outside fit for a log line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

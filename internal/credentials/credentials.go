package credentials

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Source gives the credential to log in with now. Credential is safe for
// concurrent use, may read files and call an issuer, and returns by the end of
// ctx. Nothing needs to be closed.
type Source interface {
	Credential(ctx context.Context) (Credential, error)
}

// Credential is what a NATS connection presents. With a Token, User is only
// the account wished for ("ops" or "data", or empty), and Password is empty.
type Credential struct {
	User     string
	Password string `json:"-"`
	Token    string `json:"-"`
	// Expiry is the token's exp claim, unverified. Zero: it does not expire,
	// or that is not known (a token that is not a JWT).
	Expiry time.Time
}

// String shows everything but the secrets.
func (c Credential) String() string {
	s := fmt.Sprintf("credential(user %q", c.User)
	if c.Password != "" {
		s += ", password redacted"
	}
	if c.Token != "" {
		s += ", token redacted"
	}
	if !c.Expiry.IsZero() {
		s += ", expires " + c.Expiry.UTC().Format(time.RFC3339)
	}
	return s + ")"
}

// GoString is String, so that %#v does not show secrets either.
func (c Credential) GoString() string { return c.String() }

// LogValue is the credential without its secrets.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Static is a source that always gives c.
func Static(c Credential) Source { return static(c) }

type static Credential

func (s static) Credential(context.Context) (Credential, error) { return Credential(s), nil }

// String and GoString keep the secrets of a static source out of %v and %#v.
func (s static) String() string   { return Credential(s).String() }
func (s static) GoString() string { return Credential(s).String() }

// Invalidate tells a source that the server refused its last credential, so
// that the next call gets a fresh one instead of a kept one. It does nothing
// for sources that keep none, and nothing for a token younger than 30 seconds:
// a fleet whose tokens are refused for another reason must not turn each
// reconnect into a request to the issuer.
func Invalidate(src Source) {
	if s, ok := src.(interface{ invalidate() }); ok {
		s.invalidate()
	}
}

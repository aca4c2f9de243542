package oidcverify

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/golang-jwt/jwt/v5"
)

// Reason says in one word why a token was refused: stable, for metrics and logs.
type Reason string

// The reasons.
const (
	ReasonMalformed   Reason = "malformed"          // not a JWT, too long, or without a subject
	ReasonAlgorithm   Reason = "algorithm"          // signed with anything but RS256 or ES256, or not at all
	ReasonIssuer      Reason = "issuer"             // names another issuer
	ReasonExpired     Reason = "expired"            // expiry passed or missing
	ReasonNotYet      Reason = "not_yet_valid"      // nbf in the future
	ReasonAudience    Reason = "audience"           // made for someone else
	ReasonSignature   Reason = "signature"          // the signature does not fit the issuer's key
	ReasonUnknownKey  Reason = "unknown_key"        // the issuer has no key of this id
	ReasonUnavailable Reason = "issuer_unavailable" // the keys could not be fetched, or not in time
)

// Error is what Verify returns. Its text is for the log of the verifying side: it names
// what is wrong in full, and never holds the token.
type Error struct {
	Reason Reason
	Detail string
	Err    error // cause, may be nil
}

func (e *Error) Error() string {
	s := string(e.Reason) + ": " + e.Detail
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf is the reason inside err, or "" if it holds none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func fail(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// classify maps what golang-jwt says to our reasons. The order matters: it joins the
// sentinels of all failed claims.
func classify(err error) *Error {
	var own *Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, jwt.ErrTokenMalformed):
		return &Error{Reason: ReasonMalformed, Detail: "the token cannot be decoded", Err: err}
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return fail(ReasonSignature, "the signature does not fit the issuer's key")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return fail(ReasonIssuer, "the token names another issuer")
	case errors.Is(err, jwt.ErrTokenExpired):
		return fail(ReasonExpired, "the token has expired")
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return fail(ReasonNotYet, "the token is not valid yet")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return fail(ReasonAudience, "the token was not made for this audience")
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return fail(ReasonAudience, "the token lacks a required claim (aud, iss or exp)")
	}
	return &Error{Reason: ReasonMalformed, Detail: "the token was refused", Err: err}
}

// Clip quotes text that comes from an unverified token, shortened, for a log.
func Clip(s string) string {
	const limit = 120
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strconv.Quote(s)
}

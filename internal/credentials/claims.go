package credentials

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// claims are the times a token says of itself. They are not verified: the
// holder of a token need not, and cannot be fooled into more than renewing at
// the wrong time.
type claims struct {
	IssuedAt time.Time // zero when absent
	Expiry   time.Time // zero when absent
}

// maxToken bounds what is decoded; NATS takes tokens of less than 16 KiB.
const maxToken = maxFile

var errNotJWT = errors.New("token is not a JWT")

// payload gives the claims of a JWT in compact form, as JSON.
func payload(token string) ([]byte, error) {
	if len(token) > maxToken {
		return nil, errNotJWT
	}
	head, rest, ok := strings.Cut(token, ".")
	payload, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || head == "" || strings.Contains(sig, ".") {
		return nil, errNotJWT
	}
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return nil, errNotJWT
	}
	return raw, nil
}

// TokenUser reads, unverified, whom a token speaks of, as the NATS user name: the
// broker verifies it, and a client only needs to know its own inbox. ok is false for
// what is not a JWT with iss and sub.
func TokenUser(token string) (user string, ok bool) {
	raw, err := payload(token)
	if err != nil {
		return "", false
	}
	var claims struct {
		Issuer  string `json:"iss"`
		Subject string `json:"sub"`
	}
	if json.Unmarshal(raw, &claims) != nil || claims.Issuer == "" || claims.Subject == "" {
		return "", false
	}
	return command.UserName(claims.Issuer, claims.Subject), true
}

// decodeClaims reads the iat and exp claims of a JWT in compact form.
func decodeClaims(token string) (claims, error) {
	raw, err := payload(token)
	if err != nil {
		return claims{}, err
	}
	// Pointers: an absent claim differs from 0. RFC 7519 allows fractions.
	var c struct {
		IssuedAt *float64 `json:"iat"`
		Expiry   *float64 `json:"exp"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return claims{}, errNotJWT
	}
	var out claims
	if out.IssuedAt, err = numericDate(c.IssuedAt); err != nil {
		return claims{}, err
	}
	if out.Expiry, err = numericDate(c.Expiry); err != nil {
		return claims{}, err
	}
	return out, nil
}

// maxDate is 9999-12-31T23:59:59Z, beyond which time.Time stops to marshal.
const maxDate = 253402300799

func numericDate(v *float64) (time.Time, error) {
	if v == nil {
		return time.Time{}, nil
	}
	if !(*v >= 0 && *v <= maxDate) {
		return time.Time{}, errors.New("token has a time that is out of range")
	}
	sec, frac := math.Modf(*v)
	return time.Unix(int64(sec), int64(frac*float64(time.Second))), nil
}

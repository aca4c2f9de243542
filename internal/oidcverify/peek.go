package oidcverify

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// peeked is what a token claims before anything of it is verified.
type peeked struct {
	Issuer   string
	Alg      string
	Expiry   time.Time // zero if absent or absurd
	Critical bool      // has a "crit" header
}

// PeekIssuer reads the issuer that a token claims, unverified: good for nothing but
// choosing the verifier that is to check it. The error is an [*Error].
func PeekIssuer(token string) (string, error) {
	p, err := peek(token)
	if err != nil {
		return "", err
	}
	return p.Issuer, nil
}

// maxUnix keeps exp within what time.Time can add a leeway to (year 9999).
const maxUnix = 253402300799

func peek(token string) (peeked, error) {
	if len(token) > MaxTokenBytes {
		return peeked{}, fail(ReasonMalformed, "the token has %d bytes, the limit is %d", len(token), MaxTokenBytes)
	}
	head, rest, ok := strings.Cut(token, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(sig, ".") {
		return peeked{}, fail(ReasonMalformed, "not a JWT (an opaque token? the issuer must be told to give out JWTs)")
	}
	var h struct {
		Alg  string          `json:"alg"`
		Crit json.RawMessage `json:"crit"`
	}
	if err := segment(head, &h); err != nil {
		return peeked{}, fail(ReasonMalformed, "the token's header cannot be decoded")
	}
	var b struct {
		Iss string       `json:"iss"`
		Exp *json.Number `json:"exp"`
	}
	if err := segment(body, &b); err != nil {
		return peeked{}, fail(ReasonMalformed, "the token's claims cannot be decoded")
	}
	p := peeked{Issuer: b.Iss, Alg: h.Alg, Critical: len(h.Crit) > 0}
	if b.Exp != nil {
		if f, err := b.Exp.Float64(); err == nil && f > 0 && f <= maxUnix {
			p.Expiry = time.Unix(int64(f), 0)
		}
	}
	return p, nil
}

func segment(s string, into any) error {
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

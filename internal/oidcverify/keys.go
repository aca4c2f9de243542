package oidcverify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

const (
	minRSABits = 2048
	// maxNoKid is how many keys are tried for a token that names none.
	maxNoKid = 4
)

// key is one usable public key of the issuer.
type key struct {
	id  string
	alg string // the one algorithm it verifies: RS256 or ES256
	pub crypto.PublicKey
}

// keySet is immutable.
type keySet []key

// parseKeySet reads a JWKS. Keys that cannot be used here (other types, encryption keys,
// short RSA keys) are left out, as an issuer may publish such beside the ones that matter;
// a set with none left is an error.
func parseKeySet(raw []byte) (keySet, error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, errors.New("the key set is not JSON of the form {\"keys\":[...]}")
	}
	var set keySet
	for _, rawKey := range doc.Keys {
		var jwk jose.JSONWebKey
		// One key at a time: go-jose gives up on a whole set for one bad key.
		if err := jwk.UnmarshalJSON(rawKey); err != nil {
			continue
		}
		if k, ok := usable(jwk); ok {
			set = append(set, k)
		}
	}
	if len(set) == 0 {
		return nil, fmt.Errorf("the key set has no RS256 or ES256 signing key (%d keys in all)", len(doc.Keys))
	}
	return set, nil
}

func usable(jwk jose.JSONWebKey) (key, bool) {
	if jwk.Use != "" && jwk.Use != "sig" {
		return key{}, false
	}
	k := key{id: jwk.KeyID, pub: jwk.Key}
	switch pub := jwk.Key.(type) {
	case *rsa.PublicKey:
		k.alg = "RS256"
		if pub.N.BitLen() < minRSABits {
			return key{}, false
		}
	case *ecdsa.PublicKey:
		k.alg = "ES256"
		if pub.Curve != elliptic.P256() {
			return key{}, false
		}
	default: // also private and symmetric keys, which have no business in a JWKS
		return key{}, false
	}
	return k, jwk.Algorithm == "" || jwk.Algorithm == k.alg
}

// find returns what golang-jwt's key function may return, or nil. The key's own type
// decides the algorithm, never the token's header alone: an RSA key is no HMAC secret.
func (s keySet) find(alg, kid string) any {
	var match []jwt.VerificationKey
	for _, k := range s {
		if k.alg == alg && (kid == "" || k.id == kid) && len(match) < maxNoKid {
			match = append(match, k.pub)
		}
	}
	switch len(match) {
	case 0:
		return nil
	case 1:
		return match[0]
	}
	return jwt.VerificationKeySet{Keys: match}
}

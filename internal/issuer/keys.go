package issuer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

const rsaBits = 2048

// newKey makes a private key for alg, which is ES256 or RS256.
func newKey(alg string) (crypto.Signer, error) {
	if alg == RS256 {
		return rsa.GenerateKey(rand.Reader, rsaBits)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// signingKey is one key of the issuer. It implements op.SigningKey.
type signingKey struct {
	id      string
	alg     jose.SignatureAlgorithm
	private crypto.Signer
	signer  jose.Signer
	retired time.Time // zero: the current one
}

func (k *signingKey) ID() string                                  { return k.id }
func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.alg }
func (k *signingKey) Key() any                                    { return k.private }

// newSigningKey names a key by its thumbprint (RFC 7638), so that a key read
// from a file has the name it had. 16 bytes keep the tokens short.
func newSigningKey(private crypto.Signer, id string) (*signingKey, error) {
	k := &signingKey{id: id, private: private}
	switch key := private.(type) {
	case *ecdsa.PrivateKey:
		if key.Curve != elliptic.P256() {
			return nil, errors.New("ECDSA key is not on P-256")
		}
		k.alg = jose.ES256
	case *rsa.PrivateKey:
		k.alg = jose.RS256
	default:
		return nil, errors.New("key is neither RSA nor ECDSA")
	}
	if id == "" {
		sum, err := (&jose.JSONWebKey{Key: private.Public()}).Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, err
		}
		k.id = base64.RawURLEncoding.EncodeToString(sum[:16])
	}
	var err error
	k.signer, err = op.SignerFromKey(k)
	return k, err
}

// keyRing is the issuer's signing keys: the first signs, the others are
// published until their grace is over.
type keyRing struct {
	alg   string
	grace time.Duration
	file  string // empty: in memory only

	mu   sync.Mutex
	keys []*signingKey // never empty after open
}

// open reads the file, if there is one, and makes a key if none fits.
func (r *keyRing) open() error {
	if r.file != "" {
		data, err := os.ReadFile(r.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("signing key file: %w", err)
		}
		if r.keys, err = parseKeys(data); err != nil {
			return fmt.Errorf("signing key file %s: %w: remove it to begin with a new key", r.file, err)
		}
	}
	if len(r.keys) > 0 && r.keys[0].retired.IsZero() && string(r.keys[0].alg) == r.alg {
		return nil
	}
	return r.rotate()
}

// rotate puts a new key in front. On an error nothing has changed.
func (r *keyRing) rotate() error {
	private, err := newKey(r.alg)
	if err != nil {
		return fmt.Errorf("make a signing key: %w", err)
	}
	fresh, err := newSigningKey(private, "")
	if err != nil {
		return fmt.Errorf("make a signing key: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	next := []*signingKey{fresh}
	for _, k := range r.liveLocked(now) {
		old := *k // tokens are being signed with *k: it is not touched
		if old.retired.IsZero() {
			old.retired = now
		}
		next = append(next, &old)
	}
	// Under the lock, so that two rotations cannot write in the wrong order.
	if err := writeKeys(r.file, next); err != nil {
		return err
	}
	r.keys = next
	return nil
}

// dropRetired forgets all keys but the current one.
func (r *keyRing) dropRetired() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := writeKeys(r.file, r.keys[:1]); err != nil {
		return err
	}
	r.keys = r.keys[:1:1]
	return nil
}

func (r *keyRing) liveLocked(now time.Time) []*signingKey {
	var live []*signingKey
	for _, k := range r.keys {
		if k.retired.IsZero() || now.Before(k.retired.Add(r.grace)) {
			live = append(live, k)
		}
	}
	return live
}

func (r *keyRing) current() *signingKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys[0]
}

// jwks is what the keys endpoint answers.
func (r *keyRing) jwks() *jose.JSONWebKeySet {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := &jose.JSONWebKeySet{}
	for _, k := range r.liveLocked(time.Now()) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: string(k.alg), Use: "sig"})
	}
	return set
}

// retiredHeader marks, in the file, a key that signs no more.
const retiredHeader = "Retired"

func parseKeys(data []byte) ([]*signingKey, error) {
	var keys []*signingKey
	for {
		// What is not understood is refused rather than overwritten later.
		if len(bytes.TrimSpace(data)) == 0 {
			return keys, nil
		}
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("holds something else than PEM")
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("holds something else than private keys in PKCS #8")
		}
		private, ok := parsed.(crypto.Signer)
		if !ok {
			return nil, errors.New("holds a key that cannot sign")
		}
		k, err := newSigningKey(private, "")
		if err != nil {
			return nil, err
		}
		if v := block.Headers[retiredHeader]; v != "" {
			if k.retired, err = time.Parse(time.RFC3339, v); err != nil {
				return nil, fmt.Errorf("holds a %s header that is not a time", retiredHeader)
			}
		}
		keys = append(keys, k)
	}
}

// writeKeys replaces the file as a whole. An empty path writes nothing.
func writeKeys(path string, keys []*signingKey) error {
	if path == "" {
		return nil
	}
	var data []byte
	for _, k := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(k.private)
		if err != nil {
			return fmt.Errorf("signing key file: %w", err)
		}
		block := &pem.Block{Type: "PRIVATE KEY", Bytes: der}
		if !k.retired.IsZero() {
			block.Headers = map[string]string{retiredHeader: k.retired.UTC().Format(time.RFC3339)}
		}
		data = append(data, pem.EncodeToMemory(block)...)
	}
	if err := atomicfile.Write(path, data); err != nil {
		return fmt.Errorf("signing key file: %w: check that the directory exists and is writable", err)
	}
	return nil
}

package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"

	"github.com/go-jose/go-jose/v4"
	zcrypto "github.com/zitadel/oidc/v3/pkg/crypto"

	"github.com/harmony-fleet/fleet/internal/credentials"
)

// account is a user with the public half of its machine key.
type account struct {
	User
	keyID  string
	public crypto.PublicKey // nil: no key yet
}

// directory is the users of the issuer.
type directory struct {
	alg string // of machine keys made here

	mu     sync.Mutex
	byName map[string]*account
	byID   map[string]*account
}

func newDirectory(alg string) *directory {
	return &directory{alg: alg, byName: map[string]*account{}, byID: map[string]*account{}}
}

func (d *directory) add(u User) error {
	u, err := u.withDefaults()
	if err != nil {
		return err
	}
	u.Roles = append([]string(nil), u.Roles...)
	a := &account{User: u}
	if u.KeyFile != nil {
		if err := a.adopt(u.KeyFile); err != nil {
			return fmt.Errorf("user %q: key file: %w", u.Name, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byName[u.Name] != nil {
		return fmt.Errorf("user %q is there already: use another name", u.Name)
	}
	if other := d.byID[u.ID]; other != nil {
		return fmt.Errorf("user %q has the id %s of user %q: use another id", u.Name, u.ID, other.Name)
	}
	d.byName[u.Name], d.byID[u.ID] = a, a
	return nil
}

func (d *directory) remove(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.byName[name]
	if a == nil {
		return false
	}
	delete(d.byName, a.Name)
	delete(d.byID, a.ID)
	return true
}

// get finds a user by name or id. The copy is the caller's.
func (d *directory) get(nameOrID string) (account, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.byName[nameOrID]
	if a == nil {
		a = d.byID[nameOrID]
	}
	if a == nil {
		return account{}, false
	}
	return *a, true
}

// keyFile gives the user's machine key file, made now if there is none.
func (d *directory) keyFile(nameOrID string) ([]byte, error) {
	a, ok := d.get(nameOrID)
	if !ok {
		return nil, fmt.Errorf("no user %q", nameOrID)
	}
	if a.KeyFile != nil {
		return append([]byte(nil), a.KeyFile...), nil
	}
	// Not under the lock: an RSA key takes long. Of two made at once one wins.
	data, err := newKeyFile(a.ID, d.alg)
	if err != nil {
		return nil, fmt.Errorf("machine key of user %q: %w", a.Name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	live := d.byID[a.ID]
	if live == nil {
		return nil, fmt.Errorf("user %q was removed", a.Name)
	}
	if live.KeyFile == nil {
		if err := live.adopt(data); err != nil {
			return nil, fmt.Errorf("machine key of user %q: %w", a.Name, err)
		}
	}
	return append([]byte(nil), live.KeyFile...), nil
}

// adopt makes data the user's machine key file.
func (a *account) adopt(data []byte) error {
	kf, err := credentials.ParseKeyFile(data)
	if err != nil {
		return err
	}
	if kf.UserID != a.ID {
		return fmt.Errorf("is of user id %s, not %s", kf.UserID, a.ID)
	}
	private, _, err := zcrypto.BytesToPrivateKey([]byte(kf.Key))
	if err != nil {
		return err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return errors.New("key cannot sign")
	}
	a.KeyFile, a.keyID, a.public = append([]byte(nil), data...), kf.KeyID, signer.Public()
	return nil
}

// GetKeyByIDAndClientID gives the key an assertion must be signed with; it
// makes directory an op.JWTProfileKeyStorage. clientID is the assertion's
// issuer, which is the user's id.
func (d *directory) GetKeyByIDAndClientID(_ context.Context, keyID, clientID string) (*jose.JSONWebKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.byID[clientID]
	if a == nil {
		return nil, errors.New("no such user")
	}
	if a.public == nil || a.keyID != keyID {
		return nil, errors.New("user has no such key")
	}
	return &jose.JSONWebKey{Key: a.public, KeyID: keyID, Use: "sig"}, nil
}

// newKeyFile makes a machine key file as Zitadel's console gives it: RSA keys
// in PKCS #1. Zitadel itself makes no ECDSA ones; its clients read them.
func newKeyFile(userID, alg string) ([]byte, error) {
	private, err := newKey(alg)
	if err != nil {
		return nil, err
	}
	var block pem.Block
	switch key := private.(type) {
	case *rsa.PrivateKey:
		block = pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	case *ecdsa.PrivateKey:
		block.Type = "PRIVATE KEY"
		if block.Bytes, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return nil, err
		}
	}
	return json.Marshal(credentials.KeyFile{
		Type: credentials.KeyFileType,
		// A name, not a secret: any 18 digits do.
		KeyID:  strconv.FormatUint(4e17+rand.Uint64N(1e17), 10),
		Key:    string(pem.EncodeToMemory(&block)),
		UserID: userID,
	})
}

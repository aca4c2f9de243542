package callout

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"
)

// Names of the files that [GenerateSeeds] writes.
const (
	IssuerSeedFile = "issuer.seed"
	XKeySeedFile   = "xkey.seed"
)

// Seeds are the secrets of a callout service. The same pair serves all its instances.
type Seeds struct {
	Issuer []byte // account nkey seed, "SA..."
	XKey   []byte // curve nkey seed, "SX..."; empty: requests are not encrypted
}

// String shows nothing.
func (Seeds) String() string { return "callout.Seeds(...)" }

// GoString shows nothing.
func (s Seeds) GoString() string { return s.String() }

// PublicKeys are what the broker's auth_callout block needs of the seeds.
type PublicKeys struct {
	Issuer string // "A...": auth_callout.issuer
	XKey   string // "X...": auth_callout.xkey; empty without one
}

// NewSeeds makes a random pair.
func NewSeeds() (Seeds, error) {
	account, err := nkeys.CreateAccount()
	if err != nil {
		return Seeds{}, err
	}
	curve, err := nkeys.CreateCurveKeys()
	if err != nil {
		return Seeds{}, err
	}
	var s Seeds
	if s.Issuer, err = account.Seed(); err != nil {
		return Seeds{}, err
	}
	s.XKey, err = curve.Seed()
	return s, err
}

// Public gives the public keys of s.
func (s Seeds) Public() (PublicKeys, error) {
	k, err := s.parse()
	if err != nil {
		return PublicKeys{}, err
	}
	return k.public, nil
}

type keyPairs struct {
	issuer ed25519.PrivateKey
	// issuerPublic is what jwt takes beside sign. Handing it the seed's pair instead would
	// derive the private key from the seed twice for each JWT.
	issuerPublic nkeys.KeyPair
	xkey         *sealer // nil without one
	public       PublicKeys
}

// sign is a jwt.SignFn.
func (k keyPairs) sign(_ string, data []byte) ([]byte, error) {
	return ed25519.Sign(k.issuer, data), nil
}

// parse says only which seed is wrong: nothing of a seed enters an error.
func (s Seeds) parse() (keyPairs, error) {
	var k keyPairs
	prefix, raw, err := nkeys.DecodeSeed(bytes.TrimSpace(s.Issuer))
	if err == nil && prefix == nkeys.PrefixByteAccount && len(raw) == ed25519.SeedSize {
		k.issuer = ed25519.NewKeyFromSeed(raw)
		var pub []byte
		if pub, err = nkeys.Encode(nkeys.PrefixByteAccount, k.issuer.Public().(ed25519.PublicKey)); err == nil {
			k.public.Issuer = string(pub)
			k.issuerPublic, err = nkeys.FromPublicKey(k.public.Issuer)
		}
	}
	if err != nil || k.issuerPublic == nil {
		return keyPairs{}, errors.New("the issuer seed is not an account nkey seed (SA...); make one with fleet-callout keygen")
	}
	xseed := bytes.TrimSpace(s.XKey)
	if len(xseed) == 0 {
		return k, nil
	}
	curve, err := nkeys.FromCurveSeed(xseed)
	if err == nil {
		if k.public.XKey, err = curve.PublicKey(); err == nil {
			k.xkey, err = newSealer(xseed)
		}
	}
	if err != nil {
		return keyPairs{}, errors.New("the xkey seed is not a curve nkey seed (SX...); make one with fleet-callout keygen")
	}
	return k, nil
}

// load reads the seed files of the configuration.
func (s Signing) load() (Seeds, error) {
	if s.IssuerSeedFile == "" {
		return Seeds{}, errors.New("signing.issuer_seed_file: is empty; make the seeds with fleet-callout keygen")
	}
	var seeds Seeds
	var err error
	if seeds.Issuer, err = os.ReadFile(s.IssuerSeedFile); err != nil {
		return Seeds{}, fmt.Errorf("signing.issuer_seed_file: %w", err)
	}
	if s.XKeySeedFile != "" {
		if seeds.XKey, err = os.ReadFile(s.XKeySeedFile); err != nil {
			return Seeds{}, fmt.Errorf("signing.xkey_seed_file: %w", err)
		}
		if len(bytes.TrimSpace(seeds.XKey)) == 0 {
			return Seeds{}, fmt.Errorf("signing.xkey_seed_file: %s is empty", s.XKeySeedFile)
		}
	}
	return seeds, nil
}

// GenerateSeeds writes a new pair of seeds to dir (mode 0600; dir is made with 0700) and
// gives their public keys. It overwrites nothing: every minted user and every server's
// configuration hangs on these files.
func GenerateSeeds(dir string) (PublicKeys, error) {
	seeds, err := NewSeeds()
	if err != nil {
		return PublicKeys{}, fmt.Errorf("making seeds: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return PublicKeys{}, fmt.Errorf("making seeds: %w", err)
	}
	var made []string
	for name, seed := range map[string][]byte{IssuerSeedFile: seeds.Issuer, XKeySeedFile: seeds.XKey} {
		file := filepath.Join(dir, name)
		if err := writeNew(file, seed); err != nil {
			for _, f := range made { // all or nothing
				os.Remove(f)
			}
			return PublicKeys{}, fmt.Errorf("making seeds: %w", err)
		}
		made = append(made, file)
	}
	return seeds.Public()
}

func writeNew(file string, seed []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(seed, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(file) // ours: O_EXCL made it
	}
	return err
}

package callout

import (
	"crypto/rand"
	"errors"
	"sync"

	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/nacl/box"
)

// sealer is a curve key pair in the format of nkeys (version "xkv1": version, nonce, NaCl
// box), for traffic with few peers: nkeys works out the shared key anew for each message,
// which is a scalar multiplication, and twice that is a quarter of the work of a login.
// Safe for concurrent use.
type sealer struct {
	private [32]byte

	mu     sync.RWMutex
	shared map[string]*[32]byte // by the peer's public key
}

const (
	sealNonce = 24
	sealHead  = len(nkeys.XKeyVersionV1) + sealNonce
	// maxPeers bounds the shared keys kept: a server makes a new xkey at each start.
	maxPeers = 64
)

var errSealed = errors.New("not encrypted for this key by that peer")

func newSealer(seed []byte) (*sealer, error) {
	prefix, raw, err := nkeys.DecodeSeed(seed)
	if err != nil || prefix != nkeys.PrefixByteCurve || len(raw) != 32 {
		return nil, errors.New("not a curve seed")
	}
	return &sealer{private: [32]byte(raw), shared: map[string]*[32]byte{}}, nil
}

func (s *sealer) sharedWith(peer string) (*[32]byte, error) {
	s.mu.RLock()
	key := s.shared[peer]
	s.mu.RUnlock()
	if key != nil {
		return key, nil
	}
	raw, err := nkeys.Decode(nkeys.PrefixByteCurve, []byte(peer))
	if err != nil || len(raw) != 32 {
		return nil, errors.New("the peer's xkey is not a public curve key")
	}
	key = new([32]byte)
	public := [32]byte(raw)
	box.Precompute(key, &public, &s.private)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shared) >= maxPeers {
		clear(s.shared)
	}
	s.shared[peer] = key
	return key, nil
}

// open decrypts what peer sealed for us.
func (s *sealer) open(sealed []byte, peer string) ([]byte, error) {
	if len(sealed) < sealHead || string(sealed[:len(nkeys.XKeyVersionV1)]) != nkeys.XKeyVersionV1 {
		return nil, errSealed
	}
	key, err := s.sharedWith(peer)
	if err != nil {
		return nil, err
	}
	nonce := [sealNonce]byte(sealed[len(nkeys.XKeyVersionV1):sealHead])
	text, ok := box.OpenAfterPrecomputation(nil, sealed[sealHead:], &nonce, key)
	if !ok {
		return nil, errSealed
	}
	return text, nil
}

// seal encrypts text for peer.
func (s *sealer) seal(text []byte, peer string) ([]byte, error) {
	key, err := s.sharedWith(peer)
	if err != nil {
		return nil, err
	}
	var nonce [sealNonce]byte
	rand.Read(nonce[:]) // never fails
	out := make([]byte, 0, sealHead+len(text)+box.Overhead)
	out = append(out, nkeys.XKeyVersionV1...)
	out = append(out, nonce[:]...)
	return box.SealAfterPrecomputation(out, text, &nonce, key), nil
}

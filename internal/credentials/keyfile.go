package credentials

import (
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/zitadel/oidc/v3/pkg/client"
)

// KeyFile is the machine key file that Zitadel gives for a service user.
// (github.com/zitadel/oidc has one too, marked deprecated.)
type KeyFile struct {
	Type   string `json:"type"`  // "serviceaccount"
	KeyID  string `json:"keyId"` // the kid of the assertions
	Key    string `json:"key"`   // PEM: RSA in PKCS #1 or 8, or ECDSA P-256 in PKCS #8
	UserID string `json:"userId"`
}

// KeyFileType is the only [KeyFile.Type] taken.
const KeyFileType = "serviceaccount"

// String shows everything but the key.
func (k KeyFile) String() string { return "key file(key " + k.KeyID + " of user " + k.UserID + ")" }

// GoString is String.
func (k KeyFile) GoString() string { return k.String() }

// LogValue is String.
func (k KeyFile) LogValue() slog.Value { return slog.StringValue(k.String()) }

// ParseKeyFile reads a machine key file and checks that its key can sign.
// Errors say what is wrong and never quote the file.
func ParseKeyFile(data []byte) (KeyFile, error) {
	var k KeyFile
	if len(data) > maxFile {
		return KeyFile{}, errors.New("larger than 64 KiB: this is not a machine key file")
	}
	// Unknown keys pass: Zitadel adds some (expirationDate). The JSON error is
	// dropped, for it may quote the value it stumbled over.
	if json.Unmarshal(data, &k) != nil {
		return KeyFile{}, errors.New(`not JSON of a machine key file: download it anew from Zitadel (type "JSON")`)
	}
	switch {
	case k.Type != KeyFileType:
		return KeyFile{}, errors.New(`"type" is not "serviceaccount": make the key for a service user, not for an application`)
	case k.KeyID == "":
		return KeyFile{}, errors.New(`"keyId" is missing: download the key file anew from Zitadel`)
	case k.UserID == "":
		return KeyFile{}, errors.New(`"userId" is missing: download the key file anew from Zitadel`)
	case k.Key == "":
		return KeyFile{}, errors.New(`"key" is missing: download the key file anew from Zitadel`)
	}
	signer, err := client.NewSignerFromPrivateKeyByte([]byte(k.Key), k.KeyID)
	if err == nil {
		// A key of another curve or a very short one shows only when it signs.
		_, err = signer.Sign([]byte("probe"))
	}
	if err != nil {
		return KeyFile{}, errors.New(`"key" is not a private key in PEM (RSA or ECDSA P-256): download the key file anew from Zitadel`)
	}
	return k, nil
}

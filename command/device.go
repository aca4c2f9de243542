package command

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
)

// MaxDeviceID is the longest device id, in bytes: one DNS label (RFC 1123).
const MaxDeviceID = 63

// CheckDeviceID refuses whatever is not one lower-case DNS label,
// [a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?. Every part that takes a device id calls
// it before a subject is built from that id: a dot or a wildcard in an id
// would widen the subject. The error is an [*Error] with [OutcomeRejected].
func CheckDeviceID(id string) error {
	if why := deviceIDFault(id); why != "" {
		return &Error{
			Outcome: OutcomeRejected,
			Message: fmt.Sprintf("device id %s: %s; a device id is 1 to 63 of a-z, 0-9 and '-', with no '-' at either end", quote(id), why),
		}
	}
	return nil
}

func deviceIDFault(id string) string {
	if id == "" {
		return "is empty"
	}
	if len(id) > MaxDeviceID {
		return fmt.Sprintf("has %d bytes", len(id))
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-':
			if i == 0 || i == len(id)-1 {
				return "starts or ends with '-'"
			}
		default:
			return fmt.Sprintf("has %q at byte %d", id[i:i+1], i)
		}
	}
	return ""
}

// quote prints a string that came from outside, at a length that fits a line.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// UserName is the NATS user name of a person or service that signed in with an
// OIDC token: issuer and subject in clear, so that audit is readable. An issuer
// URL has no fragment (OpenID Connect Discovery 1.0, section 3), so "#" parts
// the two unambiguously.
func UserName(issuer, subject string) string { return issuer + "#" + subject }

// UID is the token-safe name of a caller in subjects: the first 128 bits of the
// SHA-256 of the NATS user name, in lower-case base32 (26 characters). One rule
// holds for both authentication modes; see [UserName].
func UID(user string) string {
	sum := sha256.Sum256([]byte(user))
	return lowerBase32.EncodeToString(sum[:16])
}

// IsUID tells whether uid has the form that [UID] gives: 26 characters of
// lower-case base32, so that it can stand as one token of a subject.
func IsUID(uid string) bool { return isToken128(uid) }

// isToken128 tells whether s is 128 bits in lower-case base32.
func isToken128(s string) bool {
	if len(s) != 26 {
		return false
	}
	raw, err := lowerBase32.DecodeString(s)
	// Only one of the spellings that decode to the same bits is the encoder's.
	return err == nil && lowerBase32.EncodeToString(raw) == s
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// InboxPrefix is the only prefix under which the caller uid may receive
// replies, for example "_INBOX.mfrggzdfmztwq2lknnwg23tpoi".
func InboxPrefix(uid string) string { return "_INBOX." + uid }

// DeviceInboxPrefix is the prefix under which a device receives replies, for
// example "_INBOX.dev.vm-device-00".
func DeviceInboxPrefix(device string) string { return "_INBOX.dev." + device }

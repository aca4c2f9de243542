package callout

import (
	"errors"
	"fmt"

	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

// Reason says in one word why a login was refused: the label of the metrics and the
// "reason" of the log line. docs/callout.md explains each. Beside these there are the
// reasons of package oidcverify.
type Reason string

// The reasons of this package.
const (
	ReasonBadRequest       Reason = "bad_request"          // the server's request is not one, or not for this service
	ReasonUnencrypted      Reason = "unencrypted"          // the server does not encrypt though an xkey is configured, or the reverse
	ReasonConnectionKind   Reason = "connection_kind"      // a leaf node or MQTT client
	ReasonNoToken          Reason = "no_token"             // no token came along
	ReasonUnknownIssuer    Reason = "unknown_issuer"       // the token's issuer is not configured
	ReasonSubject          Reason = "subject"              // the subject cannot be a user name
	ReasonNoRoles          Reason = "no_roles"             // the token has no role of this system
	ReasonRoleNotGrantable Reason = "role_not_grantable"   // it has, but the issuer may not grant them
	ReasonAmbiguousRoles   Reason = "ambiguous_roles"      // device and people roles together
	ReasonWrongAccount     Reason = "wrong_account"        // asked for an account that its roles do not enter
	ReasonDeviceID         Reason = "device_id"            // no device id, or one outside the syntax
	ReasonDevice           Reason = "device_not_grantable" // a device id that the issuer may not name
	ReasonConnectionName   Reason = "connection_name"      // a device whose connection has another device's name
	ReasonInternal         Reason = "internal"             // a fault of the service itself
	reasonProbe            Reason = "probe"                // the self-probe: a denial that shows all is well
	reasonMalformed               = Reason(oidcverify.ReasonMalformed)
	reasonExpired                 = Reason(oidcverify.ReasonExpired)
)

// Denial is why a login is refused. Its text is for the operators' log, not for the
// client.
type Denial struct {
	Reason Reason
	Text   string
}

func (d *Denial) Error() string { return string(d.Reason) + ": " + d.Text }

func deny(r Reason, format string, args ...any) *Denial {
	return &Denial{Reason: r, Text: fmt.Sprintf(format, args...)}
}

// denialOf makes a denial of any error.
func denialOf(err error) *Denial {
	var d *Denial
	if errors.As(err, &d) {
		return d
	}
	var v *oidcverify.Error
	if errors.As(err, &v) {
		text := v.Detail
		if v.Err != nil {
			text += ": " + v.Err.Error()
		}
		return &Denial{Reason: Reason(v.Reason), Text: text}
	}
	return &Denial{Reason: ReasonInternal, Text: err.Error()}
}

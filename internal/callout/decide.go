package callout

import (
	"errors"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

// maxSubject bounds the "sub" that becomes part of a NATS user name (OpenID Connect Core
// 1.0, section 2: at most 255 characters).
const maxSubject = 255

// decision is who a client is and what it may do.
type decision struct {
	Account access.Account
	Name    string // NATS user name; empty for devices
	Device  string // empty for people
	Roles   []access.Role
	Perms   access.Permissions
}

// decide maps verified claims to an account and permissions. userField is the NATS user
// name that the client gave beside its token. The error is a [*Denial].
func decide(iss *Issuer, claims oidcverify.Claims, userField string) (decision, error) {
	if len(claims.Subject) > maxSubject || strings.ContainsFunc(claims.Subject, unwritable) {
		return decision{}, deny(ReasonSubject, "the subject is longer than %d bytes or has characters that cannot be shown", maxSubject)
	}
	subject := iss.subject(claims.Subject)
	held := rolesOf(iss, subject, claims)
	if len(held) == 0 {
		where := "the plain roles claim, the roles array or the subjects table"
		if iss.ProjectID != "" {
			where = "the roles claim of project " + iss.ProjectID + " (the scope urn:zitadel:iam:org:projects:roles must be asked for) or the subjects table"
		}
		return decision{}, deny(ReasonNoRoles, "no role of this system in %s", where)
	}
	roles := slices.DeleteFunc(slices.Clone(held), func(r access.Role) bool { return !slices.Contains(iss.Roles, r) })
	if len(roles) == 0 {
		return decision{}, deny(ReasonRoleNotGrantable, "roles %v are not among those that the issuer may grant, %v", held, iss.Roles)
	}
	if slices.Contains(roles, access.RoleDevice) {
		if len(roles) > 1 {
			return decision{}, deny(ReasonAmbiguousRoles, "roles %v: a device cannot be a person as well", roles)
		}
		return decideDevice(iss, subject, claims, userField)
	}
	return decidePerson(roles, claims, userField)
}

// unwritable finds what would spoil a log line or a user name.
func unwritable(r rune) bool { return !unicode.IsGraphic(r) || r == unicode.ReplacementChar }

func (iss *Issuer) subject(sub string) *Subject {
	for i := range iss.Subjects {
		if iss.Subjects[i].Subject == sub {
			return &iss.Subjects[i]
		}
	}
	return nil
}

func decideDevice(iss *Issuer, subject *Subject, claims oidcverify.Claims, userField string) (decision, error) {
	if userField != "" && userField != string(access.Fleet) {
		return decision{}, deny(ReasonWrongAccount, "a device asked for account %s", shown(userField))
	}
	id := ""
	if subject != nil {
		id = subject.DeviceID
	}
	if id == "" {
		name, _ := claims.Raw[iss.DeviceIDClaim].(string)
		var ok bool
		if id, ok = strings.CutPrefix(name, *iss.DeviceIDPrefix); !ok || id == "" {
			return decision{}, deny(ReasonDeviceID, "claim %s is %s, not %s and a device id", iss.DeviceIDClaim, oidcverify.Clip(name), *iss.DeviceIDPrefix)
		}
	}
	if err := command.CheckDeviceID(id); err != nil {
		return decision{}, deny(ReasonDeviceID, "%s is not a device id", oidcverify.Clip(id))
	}
	if ok, err := path.Match(iss.Devices, id); err != nil || !ok {
		return decision{}, deny(ReasonDevice, "device %s is outside what the issuer may name, %q", id, iss.Devices)
	}
	// No name: a configuration reload disconnects every client whose minted user has one
	// (nats-server 2.15), and devices know each other by id anyway.
	return decision{Account: access.Fleet, Device: id, Roles: []access.Role{access.RoleDevice}, Perms: access.ForDevice(id)}, nil
}

// checkName refuses a device whose connection has the name of another's. The name is
// all by which the server's event of a connection's end can be told to be a device's.
func checkName(made decision, name string) error {
	other, named := strings.CutPrefix(name, command.ConnectionName(""))
	if made.Device == "" || !named || other == made.Device {
		return nil
	}
	return deny(ReasonConnectionName, "the agent of device %s signs in with the token of device %s: correct its device_id, or its key", oidcverify.Clip(other), made.Device)
}

func decidePerson(roles []access.Role, claims oidcverify.Claims, userField string) (decision, error) {
	account, err := chooseAccount(roles, userField)
	if err != nil {
		return decision{}, err
	}
	name := command.UserName(claims.Issuer, claims.Subject)
	perms, err := access.ForPerson(account, command.UID(name), roles)
	if err != nil {
		if _, ok := errors.AsType[access.NoAccessError](err); ok {
			return decision{}, deny(ReasonWrongAccount, "%v", err)
		}
		return decision{}, deny(ReasonInternal, "%v", err)
	}
	return decision{Account: perms.Account, Name: name, Roles: roles, Perms: perms}, nil
}

// chooseAccount takes the account asked for, or else OPS before DATA.
func chooseAccount(roles []access.Role, userField string) (access.Account, error) {
	may := func(a access.Account) bool {
		return slices.ContainsFunc(roles, func(r access.Role) bool { return slices.Contains(r.Accounts(), a) })
	}
	switch asked := access.Account(userField); asked {
	case "":
		for _, a := range []access.Account{access.Ops, access.Data} {
			if may(a) {
				return a, nil
			}
		}
		return "", deny(ReasonWrongAccount, "roles %v enter no account", roles)
	case access.Ops, access.Data:
		if !may(asked) {
			return "", deny(ReasonWrongAccount, "roles %v do not enter the account asked for, %q", roles, asked)
		}
		return asked, nil
	}
	return "", deny(ReasonWrongAccount, "the user field is %s; beside a token it may be ops or data", shown(userField))
}

// shown is a user field for the log. A long one is more likely a token that was
// put there by mistake than an account's name.
func shown(userField string) string {
	const longest = 32
	if len(userField) > longest {
		return "something long, not shown here"
	}
	return oidcverify.Clip(userField)
}

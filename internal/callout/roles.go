package callout

import (
	"slices"

	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/oidcverify"
)

const (
	claimPlainRoles = "urn:zitadel:iam:org:project:roles"
	claimRoles      = "roles"
)

// projectRolesClaim is the claim with a machine user's roles on one project: the only
// form that Zitadel gives to machine users.
func projectRolesClaim(projectID string) string {
	return "urn:zitadel:iam:org:project:" + projectID + ":roles"
}

// rolesOf collects what a verified token says of roles, known to this system or not, in
// the order of access.Roles and without repetition. subject is the issuer's entry for
// this subject, or nil.
func rolesOf(iss *Issuer, subject *Subject, claims oidcverify.Claims) []access.Role {
	var names []string
	if iss.ProjectID != "" {
		names = append(names, roleNames(claims.Raw[projectRolesClaim(iss.ProjectID)])...)
	}
	if iss.ProjectID == "" || iss.PlainRoles {
		names = append(names, roleNames(claims.Raw[claimPlainRoles])...)
		names = append(names, roleNames(claims.Raw[claimRoles])...)
	}
	if subject != nil {
		for _, r := range subject.Roles {
			names = append(names, string(r))
		}
	}
	var roles []access.Role
	for _, r := range access.Roles() {
		if slices.Contains(names, string(r)) {
			roles = append(roles, r)
		}
	}
	return roles
}

// roleNames decodes a roles claim: Zitadel's {"role": {"<org id>": "<org domain>"}}, where
// a role without any organisation is not granted, or an array of strings. Anything else
// is no role.
func roleNames(claim any) []string {
	var names []string
	switch v := claim.(type) {
	case map[string]any:
		for name, orgs := range v {
			if m, ok := orgs.(map[string]any); ok && len(m) > 0 {
				names = append(names, name)
			}
		}
	case []any:
		for _, item := range v {
			if name, ok := item.(string); ok {
				names = append(names, name)
			}
		}
	}
	return names
}

// Package access says who may do what on the broker: the accounts of a tenant,
// the roles that an identity may hold, and the NATS permissions that follow. It
// is the one place that knows them; the broker's configuration (static users)
// and the auth callout (minted users) both take theirs from here.
//
//	perms, err := access.ForPerson(access.Ops, uid, []access.Role{access.RoleOps})
//	perms := access.ForDevice("vm-device-00")
//
// People and their tools live in the OPS account, devices in FLEET, the streams
// and their controllers in DATA, and people who only write desired state and
// labels in DEPLOY. The accounts are apart because NATS does not check the
// permission of reply subjects: whoever shares an account with JetStream can
// have an answer of the broker or of a device delivered to the stream API or
// stored under somebody else's name.
package access

import (
	"fmt"
	"slices"

	"github.com/harmony-fleet/fleet/command"
)

// Accounts names the NATS accounts of one tenant. Empty fields mean the default
// names.
type Accounts struct {
	Ops    string `toml:"ops"`    // default OPS: people and their tools
	Data   string `toml:"data"`   // default DATA: streams, buckets, controllers
	Deploy string `toml:"deploy"` // default DEPLOY: writers of desired state who do not own the streams
	Fleet  string `toml:"fleet"`  // default FLEET: devices
	Auth   string `toml:"auth"`   // default AUTH: the callout service alone
	System string `toml:"system"` // default SYS
}

// WithDefaults fills empty names.
func (a Accounts) WithDefaults() Accounts {
	def := func(s *string, name string) {
		if *s == "" {
			*s = name
		}
	}
	def(&a.Ops, "OPS")
	def(&a.Data, "DATA")
	def(&a.Deploy, "DEPLOY")
	def(&a.Fleet, "FLEET")
	def(&a.Auth, "AUTH")
	def(&a.System, "SYS")
	return a
}

// Name is the NATS account name of account.
func (a Accounts) Name(account Account) string {
	a = a.WithDefaults()
	switch account {
	case Ops:
		return a.Ops
	case Data:
		return a.Data
	case Deploy:
		return a.Deploy
	case Fleet:
		return a.Fleet
	}
	return ""
}

// Account is one of the accounts that an identity can be placed in. Its text is
// what a client gives as the NATS user beside a token to choose between two.
type Account string

// The accounts that identities are placed in.
const (
	Ops    Account = "ops"
	Data   Account = "data"
	Deploy Account = "deploy" // never asked for by name: see [Permissions.Account]
	Fleet  Account = "fleet"
)

// Role is what an identity provider grants.
type Role string

// The roles.
const (
	RoleViewer     Role = "fleet-viewer"     // ping, list devices
	RoleLogs       Role = "fleet-logs"       // viewer and logs
	RoleOps        Role = "fleet-ops"        // logs and exec
	RoleShell      Role = "fleet-shell"      // ops and shell
	RoleAuditor    Role = "fleet-auditor"    // read the audit stream
	RoleDeployer   Role = "fleet-deployer"   // put and get desired state and labels
	RoleAdmin      Role = "fleet-admin"      // all of these
	RoleController Role = "fleet-controller" // the Kubernetes operator
	RoleDevice     Role = "device"           // a device: its own subjects only
)

// Roles lists every role.
func Roles() []Role {
	return []Role{RoleViewer, RoleLogs, RoleOps, RoleShell, RoleAuditor, RoleDeployer, RoleAdmin, RoleController, RoleDevice}
}

// Known tells whether r is a role of this system.
func (r Role) Known() bool { return slices.Contains(Roles(), r) }

// Accounts lists the accounts that a holder of the role can ask for, the usual
// one first. Which account the user is then placed in is told by
// [Permissions.Account].
func (r Role) Accounts() []Account {
	switch r {
	case RoleViewer, RoleLogs, RoleOps, RoleShell, RoleAuditor:
		return []Account{Ops}
	case RoleAdmin:
		return []Account{Ops, Data}
	case RoleDeployer, RoleController:
		return []Account{Data}
	case RoleDevice:
		return []Account{Fleet}
	}
	return nil
}

// verbs are the commands that the role may send.
func (r Role) verbs() []command.Verb {
	switch r {
	case RoleViewer:
		return []command.Verb{command.VerbPing}
	case RoleLogs:
		return []command.Verb{command.VerbPing, command.VerbLogs}
	case RoleOps:
		return []command.Verb{command.VerbPing, command.VerbLogs, command.VerbExec, command.VerbResult}
	case RoleShell:
		return []command.Verb{command.VerbPing, command.VerbLogs, command.VerbExec, command.VerbShell, command.VerbResult}
	case RoleAdmin:
		return command.Verbs()
	}
	return nil
}

// sessions tells whether the role opens sessions with devices.
func (r Role) sessions() bool {
	verbs := r.verbs()
	return slices.Contains(verbs, command.VerbLogs)
}

// runsJobs tells whether the role runs programs on many devices, and so reads how
// they ended.
func (r Role) runsJobs() bool { return slices.Contains(r.verbs(), command.VerbExec) }

// audits tells whether the role reads the audit stream.
func (r Role) audits() bool { return r == RoleAuditor || r == RoleAdmin }

// NoAccessError is returned for roles that give no entry to the account asked for.
type NoAccessError struct {
	Account Account
	Roles   []Role
}

func (e NoAccessError) Error() string {
	return fmt.Sprintf("roles %v give no access to account %q", e.Roles, e.Account)
}

package command

import "slices"

// Verb names what a command asks of a device. It is the last token of the
// command's subject.
type Verb string

// The verbs of protocol 1.
const (
	VerbPing   Verb = "ping"   // is it there, and how is it
	VerbLogs   Verb = "logs"   // output of a container
	VerbExec   Verb = "exec"   // run a program, in a container or on the host
	VerbShell  Verb = "shell"  // a terminal
	VerbResult Verb = "result" // the outcome of an earlier request id
)

// Verbs lists every verb of this protocol.
func Verbs() []Verb { return []Verb{VerbPing, VerbLogs, VerbExec, VerbShell, VerbResult} }

// Known tells whether v is a verb of this protocol.
func (v Verb) Known() bool { return slices.Contains(Verbs(), v) }

// Changes tells whether the verb may change something on the device. Such verbs
// need a request id, a deadline and the device's instance, refuse unknown
// fields, and run at most once also across an agent restart.
func (v Verb) Changes() bool { return v == VerbExec || v == VerbShell }

// AuditOther stands in for the verb in the audit subject of a command whose
// verb is not known, so that callers cannot make subjects without bound.
const AuditOther Verb = "other"

// AuditVerb is the verb under which a command with verb v is audited.
func AuditVerb(v Verb) Verb {
	if v.Known() {
		return v
	}
	return AuditOther
}

package command

import (
	"fmt"
	"strings"
)

// First tokens of the subjects of this protocol.
const (
	commandPrefix   = "device-commands"
	sessionToken    = "session"
	sessionPrefix   = "fleet.session"
	statusPrefix    = "fleet.status"
	heartbeatPrefix = "fleet.heartbeat"
	auditPrefix     = "fleet.audit"
	seenPrefix      = "fleet.seen"
	jobPrefix       = "fleet.job"
)

const connectionPrefix = "fleet-agent "

// DesiredStateBucket is the KV bucket of the desired-state documents; its key
// is the device id.
const DesiredStateBucket = "desired-state"

// Subject is where a command is sent: "device-commands.vm-device-00.ping".
func Subject(device string, verb Verb) string {
	return commandPrefix + "." + device + "." + string(verb)
}

// Subscription is what the agent of a device subscribes to, without a queue
// group: "device-commands.vm-device-00.>".
func Subscription(device string) string { return commandPrefix + "." + device + ".>" }

// SessionSubject is where a device publishes the output of a session, and the
// only caller who may subscribe is uid: "fleet.session.vm-device-00.<uid>.<sid>".
func SessionSubject(device, uid, sid string) string {
	return sessionPrefix + "." + device + "." + uid + "." + sid
}

// SessionControlSubject is where the caller controls a session:
// "device-commands.vm-device-00.session.<uid>.<sid>.credit".
func SessionControlSubject(device, uid, sid string, op SessionOp) string {
	return commandPrefix + "." + device + "." + sessionToken + "." + uid + "." + sid + "." + string(op)
}

// StatusSubject is "fleet.status.<device>".
func StatusSubject(device string) string { return statusPrefix + "." + device }

// HeartbeatSubject is "fleet.heartbeat.<device>".
func HeartbeatSubject(device string) string { return heartbeatPrefix + "." + device }

// SeenSubject is where a device sees its own heartbeats as the broker stored
// them, with the broker's own headers: "fleet.seen.<device>". A heartbeat there
// with another instance means that a second agent uses the id. Devices may
// subscribe to it and not publish it.
func SeenSubject(device string) string { return seenPrefix + "." + device }

// ConnectionName is the name that the agent of a device gives its connections in
// CONNECT: "fleet-agent vm-device-00". By it the broker's event of a connection's end
// is known for the device's; the auth callout refuses a device under another's name.
func ConnectionName(device string) string { return connectionPrefix + device }

// AuditSubject is "fleet.audit.<device>.<verb>".
func AuditSubject(device string, verb Verb) string {
	return auditPrefix + "." + device + "." + string(AuditVerb(verb))
}

// AuditSubjects matches the audit records of a device, of all verbs:
// "fleet.audit.vm-device-00.*".
func AuditSubjects(device string) string { return auditPrefix + "." + device + ".*" }

// DesiredStateSubject is the subject under which the desired state of a device
// is stored: "$KV.desired-state.<device>".
func DesiredStateSubject(device string) string {
	return "$KV." + DesiredStateBucket + "." + device
}

// SessionOp is a control operation on a session.
type SessionOp string

// The control operations of protocol 1; none of them is replied to.
const (
	OpCredit SessionOp = "credit" // [Credit]: acknowledges and grants
	OpIn     SessionOp = "in"     // bytes of standard input
	OpEOF    SessionOp = "eof"    // end of standard input
	OpResize SessionOp = "resize" // [Resize]
	OpSignal SessionOp = "signal" // [Signal]
	OpCancel SessionOp = "cancel" // ends the session and its process
)

// Known tells whether op is an operation of this protocol.
func (op SessionOp) Known() bool {
	switch op {
	case OpCredit, OpIn, OpEOF, OpResize, OpSignal, OpCancel:
		return true
	}
	return false
}

// Target is what a subject below device-commands addresses.
type Target struct {
	Device string
	Verb   Verb // empty for session control; may be unknown

	// Set for session control only.
	UID, Session string
	Op           SessionOp // may be unknown
}

// ParseSubject takes a command or session-control subject apart. An unknown
// verb or operation is not an error here: the device answers it.
func ParseSubject(subject string) (Target, error) {
	tokens := strings.Split(subject, ".")
	if len(tokens) < 3 || tokens[0] != commandPrefix {
		return Target{}, fmt.Errorf("subject %s: want %s.<device>.<verb>", quote(subject), commandPrefix)
	}
	for _, t := range tokens {
		if t == "" || strings.ContainsAny(t, "*> \t\r\n") {
			return Target{}, fmt.Errorf("subject %s: has an empty or wildcard token", quote(subject))
		}
	}
	target := Target{Device: tokens[1]}
	if err := CheckDeviceID(target.Device); err != nil {
		return Target{}, err
	}
	switch {
	case tokens[2] != sessionToken && len(tokens) == 3:
		target.Verb = Verb(tokens[2])
	case tokens[2] == sessionToken && len(tokens) == 6:
		target.UID, target.Session, target.Op = tokens[3], tokens[4], SessionOp(tokens[5])
	default:
		return Target{}, fmt.Errorf("subject %s: want %s.<device>.<verb> or %s.<device>.%s.<uid>.<session>.<op>",
			quote(subject), commandPrefix, commandPrefix, sessionToken)
	}
	return target, nil
}

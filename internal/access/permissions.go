package access

import (
	"fmt"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Streams that the provisioner makes, beside the KV buckets of package command.
const (
	StreamStatus    = "STATUS"
	StreamHeartbeat = "HEARTBEAT"
	StreamAudit     = "AUDIT"
	StreamJobs      = "JOBS"
)

// Subjects of the broker that permissions name.
const (
	// UserInfo answers with the connection's own user and the server's time.
	UserInfo = "$SYS.REQ.USER.INFO"
	// Disconnected tells, in DATA, of each connection of FLEET that ends: the system
	// account's event, which the broker's configuration brings there.
	Disconnected = "fleet.disconnected"

	directGet  = "$JS.API.DIRECT.GET."
	streamInfo = "$JS.API.STREAM.INFO."
)

// ReplyLifetime is how long a device may take to reply to a command. The export
// of the command subjects uses the same bound.
const ReplyLifetime = 10 * time.Minute

// Permissions are what a NATS user may publish and subscribe to; everything
// else is denied. The zero value must not be handed to NATS, which takes an
// empty list for "everything".
type Permissions struct {
	// Account is where the user is to be placed. It differs from the account
	// asked for in one case: a deployer asks for [Data], and is placed in
	// [Deploy], whose imports from DATA are all that a deployer may use.
	Account Account

	Publish   []string
	Subscribe []string
	// Responses is how many replies the user may send to a message that it
	// received, whatever the reply subject; 0: none. Within ReplyLifetime.
	Responses int
}

// DirectGet is the subject on which messages of stream are read, for example
// "$JS.API.DIRECT.GET.STATUS".
func DirectGet(stream string) string { return directGet + stream }

// DirectGetLast is the subject on which the last message on subject is read
// from stream.
func DirectGetLast(stream, subject string) string { return directGet + stream + "." + subject }

// KVStream is the name of the stream behind a KV bucket.
func KVStream(bucket string) string { return "KV_" + bucket }

// AnyDevice stands for every device id in [ForDevice]. It is for userpass mode
// alone, where all devices share one user.
const AnyDevice = "*"

// ForDevice is what the device may do: its own subjects only. The id must have
// passed [command.CheckDeviceID] or be [AnyDevice]; ForDevice panics otherwise,
// since a permission with a dot or a wildcard in the id would cover other
// devices.
//
// No subject is in both lists. If a device could publish something and receive
// it again, it would choose the reply subject of a message that it receives,
// and Responses would let it publish there: to any subject of its account.
func ForDevice(device string) Permissions {
	if device != AnyDevice {
		if err := command.CheckDeviceID(device); err != nil {
			panic(fmt.Sprintf("access: permissions for a device: %v", err))
		}
	}
	return Permissions{
		Account: Fleet,
		Publish: []string{
			command.StatusSubject(device),
			command.HeartbeatSubject(device),
			command.AuditSubjects(device),
			command.JobSubjects(device),
			"fleet.session." + device + ".>",
			UserInfo,
			DirectGetLast(KVStream(command.DesiredStateBucket), command.DesiredStateSubject(device)),
			DirectGetLast(StreamAudit, command.AuditSubjects(device)),
		},
		Subscribe: []string{
			command.Subscription(device),
			command.DesiredStateSubject(device),
			// Its own heartbeats as they were stored, which it cannot publish: another
			// agent that uses the same id shows up here.
			command.SeenSubject(device),
			command.DeviceInboxPrefix(device) + ".>",
		},
		Responses: 1,
	}
}

// ForPerson is what someone (or some tool) with these roles may do in account.
// It returns [NoAccessError] where none of the roles enters that account, and an
// error for a uid that is not one of [command.UID]'s.
func ForPerson(account Account, uid string, roles []Role) (Permissions, error) {
	if !command.IsUID(uid) {
		return Permissions{}, fmt.Errorf("permissions for a person: %q is not a uid", uid)
	}
	var held []Role
	for _, r := range roles {
		if r != RoleDevice && slices.Contains(r.Accounts(), account) {
			held = append(held, r)
		}
	}
	if len(held) == 0 {
		return Permissions{}, NoAccessError{Account: account, Roles: roles}
	}
	p := Permissions{
		Account:   account,
		Publish:   []string{UserInfo},
		Subscribe: []string{command.InboxPrefix(uid) + ".>"},
	}
	if account == Data && !slices.ContainsFunc(held, Role.ownsData) {
		p.Account = Deploy
	}
	for _, r := range held {
		switch account {
		case Ops:
			p.addOps(uid, r)
		case Data:
			p.addData(r)
		}
	}
	slices.Sort(p.Publish)
	slices.Sort(p.Subscribe)
	p.Publish = slices.Compact(p.Publish)
	p.Subscribe = slices.Compact(p.Subscribe)
	return p, nil
}

func (p *Permissions) addOps(uid string, r Role) {
	for _, verb := range r.verbs() {
		p.Publish = append(p.Publish, command.Subject("*", verb))
	}
	if len(r.verbs()) > 0 {
		p.Publish = append(p.Publish, DirectGet(StreamStatus), DirectGet(StreamHeartbeat), DirectGet(KVStream(command.DeviceLabelsBucket)))
		p.Subscribe = append(p.Subscribe, command.StatusSubject("*"), command.HeartbeatSubject("*"))
	}
	if r.sessions() {
		p.Publish = append(p.Publish, "device-commands.*.session."+uid+".>")
		p.Subscribe = append(p.Subscribe, command.SessionSubject("*", uid, ">"))
	}
	if r.runsJobs() {
		p.Publish = append(p.Publish, DirectGet(StreamJobs))
	}
	if r.audits() {
		p.Publish = append(p.Publish, DirectGet(StreamAudit))
		p.Subscribe = append(p.Subscribe, "fleet.audit.>")
	}
}

// ownsData tells whether the role owns the streams of DATA.
func (r Role) ownsData() bool { return r == RoleController || r == RoleAdmin }

func (p *Permissions) addData(r Role) {
	p.Publish = append(p.Publish, DeployWrites()...)
	p.Publish = append(p.Publish, DeployReads()...)
	if r.ownsData() {
		// Streams and buckets are made and their changes followed by these; both own
		// the whole of DATA.
		p.Publish = append(p.Publish, "$JS.API.>", "$JS.ACK.>", "$KV.>", "$JS.FC.>")
		p.Subscribe = append(p.Subscribe, "$KV.>", command.StatusSubject("*"), command.HeartbeatSubject("*"), "fleet.audit.>", Disconnected)
	}
}

// DeployWrites are the subjects on which a deployer writes.
func DeployWrites() []string {
	return []string{command.DesiredStateSubject("*"), command.DeviceLabelsSubject("*")}
}

// DeployReads are the subjects on which a deployer reads: each answers its
// caller and changes nothing.
func DeployReads() []string {
	desired, labels := KVStream(command.DesiredStateBucket), KVStream(command.DeviceLabelsBucket)
	return []string{
		DirectGet(StreamStatus), DirectGet(StreamHeartbeat), DirectGet(desired), DirectGet(labels),
		DirectGetLast(desired, command.DesiredStateSubject("*")), DirectGetLast(labels, command.DeviceLabelsSubject("*")),
		streamInfo + desired, streamInfo + labels,
	}
}

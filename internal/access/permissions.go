package access

import (
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Streams that the provisioner makes, beside the KV buckets of package command.
const (
	StreamStatus    = "STATUS"
	StreamHeartbeat = "HEARTBEAT"
	StreamAudit     = "AUDIT"
)

// Subjects of the broker that permissions name.
const (
	// UserInfo answers with the connection's own user and the server's time.
	UserInfo  = "$SYS.REQ.USER.INFO"
	directGet = "$JS.API.DIRECT.GET."
)

// ReplyLifetime is how long a device may take to reply to a command. The export
// of the command subjects uses the same bound.
const ReplyLifetime = 10 * time.Minute

// Permissions are what a NATS user may publish and subscribe to; everything
// else is denied.
type Permissions struct {
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

// ForDevice is what the device may do: its own subjects only. In userpass mode
// all devices share one user, and "*" stands for the id.
func ForDevice(device string) Permissions {
	return Permissions{
		Publish: []string{
			command.StatusSubject(device),
			command.HeartbeatSubject(device),
			"fleet.audit." + device + ".*",
			"fleet.session." + device + ".>",
			UserInfo,
			DirectGetLast(KVStream(command.DesiredStateBucket), command.DesiredStateSubject(device)),
			DirectGetLast(StreamAudit, "fleet.audit."+device+".*"),
		},
		Subscribe: []string{
			command.Subscription(device),
			command.DesiredStateSubject(device),
			// Its own heartbeats: another agent that uses the same id shows up here.
			command.HeartbeatSubject(device),
			command.DeviceInboxPrefix(device) + ".>",
		},
		Responses: 1,
	}
}

// ForPerson is what someone (or some tool) with these roles may do in account.
// It returns [ErrNoAccess] where none of the roles enters that account.
func ForPerson(account Account, uid string, roles []Role) (Permissions, error) {
	var held []Role
	for _, r := range roles {
		if r != RoleDevice && slices.Contains(r.Accounts(), account) {
			held = append(held, r)
		}
	}
	if len(held) == 0 {
		return Permissions{}, ErrNoAccess{Account: account, Roles: roles}
	}
	p := Permissions{
		Publish:   []string{UserInfo},
		Subscribe: []string{command.InboxPrefix(uid) + ".>"},
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
		p.Subscribe = append(p.Subscribe, "fleet.status.*", "fleet.heartbeat.*")
	}
	if r.sessions() {
		p.Publish = append(p.Publish, "device-commands.*.session."+uid+".>")
		p.Subscribe = append(p.Subscribe, "fleet.session.*."+uid+".>")
	}
	if r.audits() {
		p.Publish = append(p.Publish, DirectGet(StreamAudit))
		p.Subscribe = append(p.Subscribe, "fleet.audit.>")
	}
}

func (p *Permissions) addData(r Role) {
	desired, labels := KVStream(command.DesiredStateBucket), KVStream(command.DeviceLabelsBucket)
	p.Publish = append(p.Publish,
		command.DesiredStateSubject("*"), command.DeviceLabelsSubject("*"),
		DirectGet(desired), DirectGet(desired)+".>", DirectGet(labels), DirectGet(labels)+".>",
		"$JS.API.STREAM.INFO."+desired, "$JS.API.STREAM.INFO."+labels,
		DirectGet(StreamStatus), DirectGet(StreamHeartbeat),
	)
	if r == RoleController || r == RoleAdmin {
		// Streams and buckets are made and their changes followed by these; both own
		// the whole of DATA.
		p.Publish = append(p.Publish, "$JS.API.>", "$JS.ACK.>", "$KV.>", "$JS.FC.>")
		p.Subscribe = append(p.Subscribe, "$KV.>", "fleet.status.*", "fleet.heartbeat.*", "fleet.audit.>")
	}
}

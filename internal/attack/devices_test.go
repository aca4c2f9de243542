package attack

import (
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// attack is one row of the table.
type attack struct {
	what  string // what is tried
	by    string // who tries it
	holds string // what holds
	// run tries it and checks the refusals. After it, nothing that the broker holds
	// of others may have changed.
	run func(a *arena)
	// mayReach tells whether what reached a victim is allowed by the row; nil
	// means that nothing may.
	mayReach func(r received) bool
}

// reportSubjects are those under which d2 is known.
func reportSubjects() []string {
	return []string{
		command.StatusSubject("d2"), command.HeartbeatSubject("d2"), command.AuditSubject("d2", command.VerbExec), command.DeviceLabelsSubject("d2"),
		command.JobSubject("d2", slot),
	}
}

// streamAPI are requests that would lose or change what is stored.
func streamAPI() (out []string) {
	for _, stream := range []string{"AUDIT", "JOBS", "STATUS", "HEARTBEAT", "KV_desired-state"} {
		for _, request := range []string{"DELETE", "PURGE", "UPDATE", "MSG.DELETE", "LEADER.STEPDOWN", "RESTORE"} {
			out = append(out, "$JS.API.STREAM."+request+"."+stream)
		}
		out = append(out, "$JS.API.CONSUMER.CREATE."+stream, "$JS.API.CONSUMER.DURABLE.CREATE."+stream+".c")
	}
	return append(out, "$JS.API.STREAM.CREATE.EVIL")
}

// ownSubjects of d2, to which only the broker and callers should speak.
func ownSubjects() []string {
	return []string{
		command.Subject("d2", command.VerbExec), command.Subject("d2", command.VerbPing),
		command.SessionControlSubject("d2", operator.uid(), sid, command.OpIn),
		command.DesiredStateSubject("d2"), command.SeenSubject("d2"), d2.inbox() + ".guess",
	}
}

// slot is one of those for the results of jobs.
const slot = "07"

const sid = "mfrggzdfmztwq2lknnwg23tpoi"

const forgedInfo = `{"acc":"OPS","kind":"Client","user":"admin","name":"admin"}`

// forgeries are headers that claim to be the server's word on the caller.
func forgeries() []nats.Header {
	return []nats.Header{
		{"Nats-Request-Info": {forgedInfo}},
		{"Nats-Request-Info": {forgedInfo, forgedInfo}},
		{"nats-request-info": {forgedInfo}},
		{"NATS-REQUEST-INFO": {forgedInfo}, "Nats-Request-Info": {forgedInfo}},
		{"X": {"x\tNats-Request-Info: " + forgedInfo}},
		{"A-Nats-Request-Info": {forgedInfo}, "Nats-Request-Info": {forgedInfo}},
	}
}

const execPayload = `{"argv":["true"],"container":"web"}`

var deviceAttacks = []attack{
	{
		what: "publish status, heartbeat, audit, results of jobs, labels or seen heartbeats of another device", by: "device",
		holds: "permission violation",
		run: func(a *arena) {
			for _, s := range append(reportSubjects(), "fleet.status.d1.x", "fleet.status", "fleet.audit.d1", "fleet.audit.d1.exec.x", "fleet.job.d1", "fleet.job.d1.00.x", "fleet.job.*.00", access.Disconnected, command.SeenSubject("d1"), command.SeenSubject("d2")) {
				a.refusedPublish(d1, message(s, "", nil, `{"schema":1}`))
			}
		},
	}, {
		what: "publish output into another device's session", by: "device", holds: "permission violation",
		run: func(a *arena) {
			a.refusedPublish(d1, message(command.SessionSubject("d2", operator.uid(), sid), "", nil, "x"))
		},
	}, {
		what: "send commands or session control to devices", by: "device", holds: "permission violation",
		run: func(a *arena) {
			for _, d := range []string{"d1", "d2"} {
				for _, s := range []string{command.Subject(d, command.VerbPing), command.Subject(d, command.VerbExec), command.SessionControlSubject(d, operator.uid(), sid, command.OpIn)} {
					a.refusedPublish(d1, message(s, d1.inbox()+".x", nats.Header{"Nats-Request-Info": {forgedInfo}}, execPayload))
				}
			}
		},
	}, {
		what: "write desired state or labels, its own too, also with a rollup header", by: "device", holds: "permission violation",
		run: func(a *arena) {
			for _, s := range []string{
				command.DesiredStateSubject("d1"), command.DesiredStateSubject("d2"), command.DeviceLabelsSubject("d1"), "fleet.desired.d1", "fleet.desired.d2",
			} {
				for _, h := range []nats.Header{nil, {"Nats-Rollup": {"all"}}} {
					a.refusedPublish(d1, message(s, "", h, "{}"))
				}
			}
		},
	}, {
		what: "subscribe to another device's commands (queue groups too), desired state or inbox, or to wildcards", by: "device",
		holds: "permission violation",
		run: func(a *arena) {
			for _, s := range []string{
				command.Subscription("d2"), command.Subject("d2", command.VerbPing), "device-commands.>", "device-commands.*.ping", ">", "*.>",
				"_INBOX.>", "_INBOX.dev.>", d2.inbox() + ".>", operator.inbox() + ".>", "_R_.>", "$KV.>", "$KV.desired-state.*", command.DesiredStateSubject("d2"),
				"fleet.>", "fleet.seen.*", command.HeartbeatSubject("d1"), command.StatusSubject("d1"), command.AuditSubject("d1", command.VerbExec),
				"fleet.session.>", "$JS.>", "$SYS.>", "$NRG.>",
			} {
				a.refusedSubscribe(d1, s, "")
				a.refusedSubscribe(d1, s, "q")
			}
			// Queue groups on what it may subscribe take nothing from others.
			sub, err := a.as(d1).QueueSubscribe(command.Subscription("d1"), "q", func(*nats.Msg) {})
			must(a.t, err)
			must(a.t, a.as(d1).Flush())
			must(a.t, sub.Unsubscribe())
		},
	}, {
		what: "read other devices' desired state, audit, results of jobs or status", by: "device", holds: "permission violation",
		run: func(a *arena) {
			for _, s := range []string{
				"$JS.API.DIRECT.GET.KV_desired-state", "$JS.API.DIRECT.GET.KV_desired-state.$KV.desired-state.d2", "$JS.API.DIRECT.GET.AUDIT",
				"$JS.API.DIRECT.GET.AUDIT.fleet.audit.d2.exec", "$JS.API.DIRECT.GET.STATUS", "$JS.API.STREAM.MSG.GET.AUDIT",
				"$JS.API.DIRECT.GET.JOBS", "$JS.API.DIRECT.GET.JOBS.fleet.job.d2." + slot,
			} {
				a.refusedPublish(d1, message(s, d1.inbox()+".x", nil, `{"last_by_subj":"fleet.status.d2"}`))
			}
			// The subject decides what is read, whatever the payload asks for.
			m, err := a.as(d1).Request("$JS.API.DIRECT.GET.KV_desired-state.$KV.desired-state.d1", []byte(`{"last_by_subj":"$KV.desired-state.d2"}`), patience)
			must(a.t, err)
			if got := m.Header.Get("Nats-Subject"); got == command.DesiredStateSubject("d2") {
				a.t.Errorf("read %s", got)
			}
		},
	}, {
		what: "use the stream API: streams, consumers, purge, delete", by: "device", holds: "permission violation",
		run: func(a *arena) {
			for _, s := range append(streamAPI(), "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.CREATE.KV_desired-state.c.$KV.desired-state.d2", "$JS.ACK.x") {
				a.refusedPublish(d1, message(s, d1.inbox()+".x", nil, ""))
			}
		},
	}, {
		what: "ask the system services for anything but its own user", by: "device", holds: "permission violation",
		run: func(a *arena) { a.refuseSystem(d1) },
	}, {
		what: "have the answer of its own read (its bytes, from its own audit record) delivered as another device's status, heartbeat, audit or labels", by: "device",
		holds: "nothing is stored",
		run: func(a *arena) {
			for _, h := range append(forgeries(), nil) {
				a.send(d1, command.AuditSubject("d1", command.VerbExec), "", h, `{"schema":1,"device_id":"d2"}`)
				a.readsTo(d1, append(append(reportSubjects(), command.AuditSubject("d2", command.VerbPing), access.Disconnected), streamAPI()...))
			}
		},
	}, {
		what: "have that answer delivered to another device's commands, session control, desired state or inbox", by: "device",
		holds: "it arrives, without `Nats-Request-Info`: the agent drops commands; desired state there is a hint, and read again; inboxes are random; a false second heartbeat is an alarm and nothing more",
		run: func(a *arena) {
			for _, h := range append(forgeries(), nil) {
				a.send(d1, command.AuditSubject("d1", command.VerbExec), "", h, execPayload)
				a.readsTo(d1, ownSubjects())
			}
		},
		mayReach: func(r received) bool { return r.victim == "d2" },
	}, {
		what: "have that answer delivered into a caller's inbox or session", by: "device",
		holds: "an inbox is not reached; a session, only across a cluster's route and with the secret session id; what arrives has the broker's own headers or no chunk number, and the client drops it",
		run: func(a *arena) {
			a.readsTo(d1, []string{operator.inbox() + ".guess", command.SessionSubject("d2", operator.uid(), sid)})
		},
		mayReach: func(r received) bool {
			return strings.HasPrefix(r.msg.Subject, "fleet.session.") && (len(r.msg.Header["Nats-Stream"]) > 0 || r.msg.Header.Get(command.HeaderSeq) == "")
		},
	}, {
		what: "give itself the right to any subject: publish a report with that subject as reply, receive it on a second connection, answer", by: "device",
		holds: "permission violation: it receives nothing that carries a reply subject of its choice",
		run: func(a *arena) {
			second := a.again(d1, "second")
			var subs []*nats.Subscription
			for _, s := range d1.permissions().Subscribe {
				sub, err := second.SubscribeSync(s)
				must(a.t, err)
				subs = append(subs, sub)
			}
			must(a.t, second.Flush())
			for _, reply := range append(reportSubjects(), ownSubjects()...) {
				for _, s := range []string{command.StatusSubject("d1"), command.HeartbeatSubject("d1"), command.AuditSubject("d1", command.VerbPing), "fleet.session.d1.u.s"} {
					a.send(d1, s, reply, nil, "{}")
				}
				a.settle()
				for _, sub := range subs {
					for {
						m, err := sub.NextMsg(1)
						if err != nil {
							break
						}
						if m.Reply != "" {
							a.t.Errorf("%s has reply %s", m.Subject, m.Reply)
						}
					}
				}
				must(a.t, second.Publish(reply, []byte("{}")))
				must(a.t, second.Flush())
			}
			testwait.For(a.t, patience, "refusals", func() bool { return len(a.refusals(second, "Publish")) >= len(reportSubjects())+len(ownSubjects()) })
			for _, sub := range subs {
				must(a.t, sub.Unsubscribe())
			}
		},
	}, {
		what: "answer where it was not asked, answer twice, or ask with a reply subject of the broker's own", by: "device",
		holds: "permission violation; the caller gets one answer",
		run: func(a *arena) {
			a.refusedPublish(d1, message("_R_.abcdef.ghijkl", "", nil, "{}"))
			sub, err := a.as(d1).SubscribeSync(command.Subscription("d1"))
			must(a.t, err)
			defer sub.Unsubscribe()
			must(a.t, a.as(d1).Flush())
			inbox := viewer.inbox() + ".twice"
			answers, err := a.as(viewer).SubscribeSync(inbox)
			must(a.t, err)
			defer answers.Unsubscribe()
			must(a.t, a.as(viewer).PublishRequest(command.Subject("d1", command.VerbPing), inbox, nil))
			m, err := sub.NextMsg(patience)
			must(a.t, err)
			must(a.t, m.Respond([]byte("{}")))
			a.refusedPublish(d1, message(m.Reply, "", nil, "{}"))
			a.settle()
			if n, _, err := answers.Pending(); err != nil || n != 1 {
				a.t.Errorf("%d answers, %v", n, err)
			}
			c := a.as(d1)
			before := len(a.refusals(c, "Publish with Reply"))
			a.send(d1, "$SYS.REQ.USER.INFO", "_R_.abcdef.ghijkl", nil, "")
			testwait.For(a.t, patience, "reply violation", func() bool { return len(a.refusals(c, "Publish with Reply")) > before })
		},
	}, {
		what: "change its streams by headers: rollup, TTL, schedule, counter, batch, expected sequence, trace destination", by: "device",
		holds: "the message is refused or stored as a plain one; others' messages stay",
		run: func(a *arena) {
			for _, h := range streamHeaders() {
				for _, s := range []string{command.StatusSubject("d1"), command.HeartbeatSubject("d1"), command.AuditSubject("d1", command.VerbExec)} {
					a.send(d1, s, "", h, "1")
				}
			}
		},
	}, {
		what: "oversize reports, audit under verbs and results of jobs in slots that do not exist", by: "device", holds: "not stored",
		run: func(a *arena) {
			for s, size := range map[string]int{command.StatusSubject("d1"): 600 << 10, command.HeartbeatSubject("d1"): 9 << 10, command.AuditSubject("d1", command.VerbExec): 17 << 10, command.JobSubject("d1", slot): 7 << 10} {
				a.send(d1, s, "", nil, strings.Repeat("x", size))
			}
			for _, verb := range []string{"junk", "session", "EXEC", "*"} {
				a.send(d1, "fleet.audit.d1."+verb, "", nil, "{}")
			}
			for _, none := range []string{"10", "7", "0F", "ff", "x"} {
				a.send(d1, command.JobSubject("d1", none), "", nil, "{}")
			}
			a.settle()
			for stream, s := range map[string]string{"STATUS": command.StatusSubject("d1"), "HEARTBEAT": command.HeartbeatSubject("d1"), "AUDIT": command.AuditSubject("d1", command.VerbExec), "JOBS": command.JobSubject("d1", slot)} {
				if m, err := a.jetStream().GetLastMsg(stream, s); err != nil || len(m.Data) > 1<<10 {
					a.t.Errorf("%s: %d bytes, %v", s, len(m.Data), err)
				}
			}
			info, err := a.jetStream().StreamInfo("AUDIT", &nats.StreamInfoRequest{SubjectsFilter: "fleet.audit.d1.*"})
			must(a.t, err)
			for s := range info.State.Subjects {
				if v := command.Verb(s[strings.LastIndex(s, ".")+1:]); !v.Known() && v != command.AuditOther {
					a.t.Errorf("stored %s", s)
				}
			}
			info, err = a.jetStream().StreamInfo("JOBS", &nats.StreamInfoRequest{SubjectsFilter: "fleet.job.d1.*"})
			must(a.t, err)
			if len(info.State.Subjects) != 1 {
				a.t.Errorf("stored %v", info.State.Subjects)
			}
		},
	},
}

// streamHeaders are the headers by which a publisher may steer a stream of
// nats-server 2.15 that allows it.
func streamHeaders() []nats.Header {
	return []nats.Header{
		{"Nats-Rollup": {"all"}}, {"Nats-Rollup": {"sub"}},
		{"Nats-TTL": {"1s"}}, {"Nats-TTL": {"never"}},
		{"Nats-Schedule": {"@at 2020-01-01T00:00:00Z"}, "Nats-Schedule-Target": {"fleet.status.d2"}},
		{"Nats-Schedule": {"@every 1s"}, "Nats-Schedule-Target": {"fleet.audit.d2.exec"}, "Nats-Schedule-TTL": {"1s"}},
		{"Nats-Schedule-Next": {"purge"}, "Nats-Scheduler": {"fleet.status.d2"}},
		{"Nats-Incr": {"+1"}}, {"Nats-Counter-Sources": {"{}"}},
		{"Nats-Batch-Id": {"b"}, "Nats-Batch-Sequence": {"1"}, "Nats-Batch-Commit": {"1"}},
		{"Nats-Expected-Last-Sequence": {"0"}}, {"Nats-Expected-Last-Subject-Sequence": {"0"}, "Nats-Expected-Last-Subject-Sequence-Subject": {"fleet.status.d2"}},
		{"Nats-Expected-Stream": {"KV_desired-state"}},
		{"Nats-Marker-Reason": {"MaxAge"}}, {"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}},
		{"Nats-Trace-Dest": {"fleet.status.d2"}}, {"Nats-Trace-Dest": {"device-commands.d2.exec"}},
		{"Nats-Stream-Source": {"STATUS 1 x > >"}},
	}
}

// readsTo has the answers of all reads that w may make delivered to replies.
func (a *arena) readsTo(w who, replies []string) {
	a.t.Helper()
	for _, reply := range replies {
		for _, s := range w.permissions().Publish {
			if strings.HasPrefix(s, "$JS.API.DIRECT.GET.") || strings.HasPrefix(s, "$JS.API.STREAM.INFO.") || s == "$SYS.REQ.USER.INFO" {
				a.readTo(w, s, reply)
			}
		}
	}
}

func (a *arena) readTo(w who, subject, reply string) {
	a.t.Helper()
	bodies := []string{""}
	switch {
	case strings.HasSuffix(subject, "audit.d1.*"):
		subject = strings.TrimSuffix(subject, "*") + "exec"
	case strings.HasSuffix(subject, ".*"):
		for _, key := range []string{"d1", "d9", "absent"} {
			a.send(w, strings.TrimSuffix(subject, "*")+key, reply, nil, "")
		}
		return
	case subject == "$JS.API.DIRECT.GET.STATUS":
		bodies = []string{`{"last_by_subj":"fleet.status.d1"}`, `{"last_by_subj":"absent"}`, `{"batch":10,"next_by_subj":"fleet.status.>","seq":1}`}
	case strings.HasPrefix(subject, "$JS.API.DIRECT.GET.") && !strings.Contains(subject, "$KV."):
		bodies = []string{`{"seq":1}`, `{"seq":999999}`, `{"batch":10,"seq":1}`}
	}
	for _, body := range bodies {
		a.send(w, subject, reply, nil, body)
	}
}

func (a *arena) refuseSystem(w who) {
	a.t.Helper()
	for _, s := range []string{
		"$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.ACCOUNT.OPS.CONNZ", "$SYS.REQ.USER.AUTH",
		"$SYS.REQ.CLAIMS.LIST", "$SYS.ACCOUNT.FLEET.CONNECT", "$SYS.ACCOUNT.FLEET.DISCONNECT", "$SYS.REQ.ACCOUNT.OPS.INFO", "$SYS.REQ.SERVER.x.KICK",
	} {
		a.refusedPublish(w, message(s, w.inbox()+".x", nil, ""))
	}
}

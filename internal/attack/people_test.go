package attack

import (
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
)

// hostileReplies are reply subjects by which an answer would do harm.
func hostileReplies() []string {
	return slices.Concat(reportSubjects(), streamAPI(), []string{
		command.AuditSubject("d2", command.VerbPing), command.DesiredStateSubject("d2"), command.SeenSubject("d2"), "fleet.desired.d2",
		command.Subject("d2", command.VerbExec), command.Subject("d2", command.VerbPing),
		command.SessionControlSubject("d2", operator.uid(), sid, command.OpIn), command.SessionControlSubject("d2", operator.uid(), sid, command.OpCancel),
		d2.inbox() + ".guess", "$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING",
	})
}

// callerSubjects are where another caller receives something.
func callerSubjects() []string {
	return []string{operator.inbox() + ".guess", command.SessionSubject("d2", operator.uid(), sid)}
}

// hostileAnswers has d1 answer whatever it is asked with what would do harm
// elsewhere, until the function it returns is called.
func (a *arena) hostileAnswers(header nats.Header, body string) (stop func()) {
	a.t.Helper()
	c := a.as(d1)
	sub, err := c.Subscribe(command.Subscription("d1"), func(m *nats.Msg) {
		if m.Reply != "" {
			_ = c.PublishMsg(message(m.Reply, "", header, body)) // refused if asked twice
		}
	})
	must(a.t, err)
	must(a.t, c.Flush())
	return func() { must(a.t, sub.Unsubscribe()) }
}

var peopleAttacks = []attack{
	{
		what: "send verbs beyond the role, or unknown ones", by: "each role", holds: "permission violation",
		run: func(a *arena) {
			may := map[string][]command.Verb{
				"viewer":   {command.VerbPing},
				"logs":     {command.VerbPing, command.VerbLogs},
				"operator": {command.VerbPing, command.VerbLogs, command.VerbExec, command.VerbResult},
				"shell":    command.Verbs(), "admin": command.Verbs(),
			}
			for _, w := range everyone {
				if w.device != "" {
					continue
				}
				for _, verb := range append(command.Verbs(), "reboot", "PING", "session", "*", "session.x.y.in") {
					if !slices.Contains(may[w.name], verb) {
						a.refusedPublish(w, message(command.Subject("d2", verb), w.inbox()+".x", nil, "{}"))
					}
				}
			}
		},
	}, {
		what: "control another caller's session", by: "each role", holds: "permission violation",
		run: func(a *arena) {
			for _, w := range everyone {
				if w.name == operator.name {
					continue
				}
				for _, op := range []command.SessionOp{command.OpIn, command.OpCancel, command.OpCredit, command.OpSignal} {
					a.refusedPublish(w, message(command.SessionControlSubject("d2", operator.uid(), sid, op), "", nil, "x"))
				}
			}
		},
	}, {
		what: "publish as a device or as the broker: reports, desired state, session output, answers into another caller's inbox", by: "each role in OPS",
		holds: "permission violation",
		run: func(a *arena) {
			for _, w := range []who{viewer, logsReader, operator, shellUser, auditor, admin} {
				for _, s := range append(reportSubjects(), command.DesiredStateSubject("d2"), command.SeenSubject("d2"), "fleet.desired.d2",
					command.SessionSubject("d2", operator.uid(), sid), operator.inbox()+".x", d2.inbox()+".x", "_R_.abcdef.ghijkl") {
					a.refusedPublish(w, message(s, "", nil, "{}"))
				}
			}
		},
	}, {
		what: "subscribe to others' inboxes, sessions, commands, answers, or to wildcards", by: "each role", holds: "permission violation",
		run: func(a *arena) {
			for _, w := range everyone {
				for _, s := range []string{">", "*.>", "_INBOX.>", "_INBOX.*.>", "_R_.>", "device-commands.>", command.Subscription("d2"), "fleet.>", "fleet.session.>", "$SYS.>", "$JS.>"} {
					if w.name != "d2" || s != command.Subscription("d2") {
						a.refusedSubscribe(w, s, "")
					}
				}
				if w.name != operator.name {
					a.refusedSubscribe(w, operator.inbox()+".>", "")
					a.refusedSubscribe(w, "fleet.session.*."+operator.uid()+".>", "q")
				}
				if w.name != "auditor" && w.name != "admin" && w.name != "controller" {
					a.refusedSubscribe(w, "fleet.audit.>", "")
				}
			}
		},
	}, {
		what: "use the stream API, make consumers, read streams that the role does not give", by: "each role in OPS", holds: "permission violation",
		run: func(a *arena) {
			for _, w := range []who{viewer, logsReader, operator, shellUser, auditor, admin} {
				for _, s := range append(streamAPI(), "$JS.API.INFO", "$JS.API.STREAM.MSG.GET.AUDIT", "$JS.API.DIRECT.GET.KV_desired-state", "$JS.API.STREAM.INFO.AUDIT") {
					a.refusedPublish(w, message(s, w.inbox()+".x", nil, ""))
				}
			}
			for _, w := range []who{viewer, logsReader, operator, shellUser} {
				a.refusedPublish(w, message("$JS.API.DIRECT.GET.AUDIT", w.inbox()+".x", nil, `{"seq":1}`))
			}
			for _, w := range []who{viewer, logsReader, auditor} {
				a.refusedPublish(w, message("$JS.API.DIRECT.GET.JOBS", w.inbox()+".x", nil, `{"seq":1}`))
			}
			for _, s := range []string{"$JS.API.DIRECT.GET.STATUS", "$JS.API.DIRECT.GET.HEARTBEAT", "$JS.API.DIRECT.GET.KV_device-labels"} {
				a.refusedPublish(auditor, message(s, auditor.inbox()+".x", nil, `{"seq":1}`))
			}
		},
	}, {
		what: "ask the system services for anything but the own user", by: "each role", holds: "permission violation",
		run: func(a *arena) {
			for _, w := range everyone {
				a.refuseSystem(w)
			}
		},
	}, {
		what: "have a device's answer to a ping delivered as desired state, status, heartbeat, audit or labels, to the stream API, or to another device's commands, session control, desired state or inbox",
		by:   "viewer and device together", holds: "reaches no one, and nothing is stored",
		run: func(a *arena) {
			for _, h := range append(forgeries(), nil) {
				stop := a.hostileAnswers(h, `{"schema":1,"deployments":{},"seq":1}`)
				for _, reply := range hostileReplies() {
					a.send(viewer, command.Subject("d1", command.VerbPing), reply, nil, "")
				}
				a.settle()
				stop()
			}
			stop := a.hostileAnswers(nil, "")
			for _, reply := range hostileReplies() {
				a.send(viewer, command.Subject("d1", command.VerbPing), reply, nil, "")
			}
			a.settle()
			stop()
		},
	}, {
		what: "have the answer of a read of the streams delivered there, with bytes that a device stored", by: "viewer and device together",
		holds: "reaches no one, and nothing is stored",
		run: func(a *arena) {
			for _, h := range append(forgeries(), nil) {
				a.send(d1, command.StatusSubject("d1"), "", h, execPayload)
				a.settle()
				a.readsTo(viewer, hostileReplies())
				a.settle()
			}
		},
	}, {
		what: "have an answer delivered into another caller's inbox or session", by: "viewer and device together",
		holds: "it arrives where the exact subject is known: inboxes and session ids are random and never logged, and what a client did not ask for is dropped",
		run: func(a *arena) {
			stop := a.hostileAnswers(nil, "{}")
			defer stop()
			for _, reply := range callerSubjects() {
				a.send(viewer, command.Subject("d1", command.VerbPing), reply, nil, "")
			}
			a.readsTo(viewer, callerSubjects())
			a.settle()
		},
		mayReach: func(r received) bool {
			return r.victim == operator.name && slices.Contains(callerSubjects(), r.msg.Subject)
		},
	}, {
		what: "forge `Nats-Request-Info` on a command: once, twice, in another case, hidden in another header", by: "viewer",
		holds: "the server overwrites it; the device sees the true caller, or drops the message",
		run: func(a *arena) {
			for _, h := range forgeries() {
				a.send(viewer, command.Subject("d2", command.VerbPing), viewer.inbox()+".x", h, "")
			}
			a.settle()
		},
		mayReach: func(r received) bool {
			user, ok := caller(r.msg)
			return r.victim == "d2" && (!ok || user == viewer.name)
		},
	}, {
		what: "publish to a subject that has a wildcard in it", by: "viewer", holds: "reaches no one",
		run: func(a *arena) {
			for _, s := range []string{"device-commands.*.ping"} {
				a.send(viewer, s, viewer.inbox()+".x", nil, "")
			}
		},
	}, {
		what: "steer the broker by headers on a command: trace destination, rollup, schedule", by: "viewer",
		holds: "a trace goes only where the caller may publish anyway; nothing else is reached",
		run: func(a *arena) {
			headers := streamHeaders()
			for _, dest := range append(hostileReplies(), callerSubjects()...) {
				headers = append(headers, nats.Header{"Nats-Trace-Dest": {dest}}, nats.Header{"Nats-Trace-Dest": {dest}, "Nats-Trace-Only": {"true"}})
			}
			for _, h := range headers {
				a.send(viewer, command.Subject("d1", command.VerbPing), viewer.inbox()+".x", h, "")
			}
		},
		mayReach: func(r received) bool {
			return r.victim == "d2" && r.msg.Subject == command.Subject("d2", command.VerbPing)
		},
	}, {
		what: "use the stream API, consumers or audit, other buckets, send commands", by: "deployer", holds: "permission violation",
		run: func(a *arena) {
			for _, s := range append(streamAPI(), "$JS.API.INFO", "$JS.API.STREAM.MSG.GET.AUDIT", "$JS.API.DIRECT.GET.AUDIT", "$JS.API.DIRECT.GET.JOBS", "$JS.API.STREAM.INFO.AUDIT",
				"$KV.other.d2", "$KV.desired-state.d2.x", "fleet.desired.d2", command.StatusSubject("d2"), command.AuditSubject("d2", command.VerbExec), command.SeenSubject("d2"),
				command.Subject("d2", command.VerbPing), d2.inbox()+".x") {
				a.refusedPublish(deployer, message(s, deployer.inbox()+".x", nil, ""))
			}
		},
	}, {
		what: "have an acknowledgement, a stored document of its own making, or an empty answer delivered to the stream API or as somebody's report", by: "deployer",
		holds: "reaches no one: writers of desired state are in an account without the stream API",
		run: func(a *arena) {
			replies := slices.DeleteFunc(hostileReplies(), func(s string) bool {
				// These a deployer may write anyway.
				return s == command.DesiredStateSubject("d2") || s == command.DeviceLabelsSubject("d2")
			})
			for _, body := range []string{`{"name":"AUDIT","subjects":["fleet.audit.*.exec"],"max_msgs":1,"seq":1}`, `{"name":"EVIL","subjects":["evil"]}`, ""} {
				for _, reply := range replies {
					a.send(deployer, command.DesiredStateSubject("d9"), reply, nil, body)
				}
				a.readsTo(deployer, replies)
				a.settle()
			}
		},
	}, {
		what: "wipe history: purge and rollup in the buckets", by: "deployer", holds: "refused by the stream",
		run: func(a *arena) {
			for _, h := range []nats.Header{{"Nats-Rollup": {"all"}}, {"Nats-Rollup": {"sub"}}, {"Nats-Rollup": {"sub"}, "KV-Operation": {"PURGE"}}, {"Nats-TTL": {"1s"}}, {"Nats-Schedule": {"@every 1s"}, "Nats-Schedule-Target": {"$KV.desired-state.d2"}}} {
				m, err := a.as(deployer).RequestMsg(message(command.DesiredStateSubject("d2"), "", h, ""), patience)
				must(a.t, err)
				if !strings.Contains(string(m.Data), `"error"`) {
					a.t.Errorf("%v: %s", h, m.Data)
				}
			}
		},
	}, {
		what: "purge streams or delete single messages", by: "controller", holds: "refused by the stream, for everyone",
		run: func(a *arena) {
			for _, stream := range []string{"AUDIT", "JOBS", "STATUS", "HEARTBEAT", "KV_desired-state", "KV_device-labels"} {
				for s, body := range map[string]string{"$JS.API.STREAM.PURGE." + stream: "", "$JS.API.STREAM.MSG.DELETE." + stream: `{"seq":1}`} {
					m, err := a.as(controller).Request(s, []byte(body), patience)
					must(a.t, err)
					if !strings.Contains(string(m.Data), `"error"`) {
						a.t.Errorf("%s: %s", s, m.Data)
					}
				}
			}
		},
	}, {
		what: "publish as a device, or send commands", by: "controller", holds: "permission violation",
		run: func(a *arena) {
			for _, s := range []string{command.StatusSubject("d2"), command.HeartbeatSubject("d2"), command.AuditSubject("d2", command.VerbExec), command.SeenSubject("d2"), "fleet.desired.d2", d2.inbox() + ".x", operator.inbox() + ".x"} {
				a.refusedPublish(controller, message(s, "", nil, "{}"))
			}
		},
	},
}

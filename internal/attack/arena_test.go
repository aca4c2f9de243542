package attack

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// arena is the broker with victims that take note of all that reaches them.
type arena struct {
	t       *testing.T // of the row at hand
	owner   *testing.T // of the arena: what closes its connections
	servers []*server.Server
	at      int // server from which the attack comes
	conns   map[string]*conn
	probes  int

	mu      sync.Mutex
	reached []received
	errs    map[*nats.Conn][]string
}

// received is a message that reached a victim.
type received struct {
	victim string
	msg    *nats.Msg
}

type conn struct{ *nats.Conn }

func newArena(t *testing.T, n int, v variant) *arena {
	t.Helper()
	a := &arena{t: t, owner: t, servers: startServers(t, n, v), conns: map[string]*conn{}, errs: map[*nats.Conn][]string{}}
	provision(t, a.as(controller).Conn)
	for a.at = range a.servers {
		for _, subject := range []string{
			command.Subscription("d2"), command.DesiredStateSubject("d2"), command.SeenSubject("d2"), d2.inbox() + ".>",
		} {
			a.watch(d2, subject)
		}
		for _, subject := range []string{operator.inbox() + ".>", "fleet.session.*." + operator.uid() + ".>"} {
			a.watch(operator, subject)
		}
	}
	a.at = 0
	a.watch(controller, access.Disconnected)
	// What may be stolen, overwritten or lost.
	ctl := a.as(controller)
	must(t, ctl.Publish(command.DesiredStateSubject("d1"), []byte(`{"schema":1,"deployments":{}}`)))
	must(t, ctl.Publish(command.DesiredStateSubject("d2"), []byte(`{"schema":1,"deployments":{}}`)))
	for _, w := range []who{d1, d2} {
		for _, subject := range []string{command.StatusSubject(w.device), command.HeartbeatSubject(w.device), command.AuditSubject(w.device, command.VerbExec), command.JobSubject(w.device, slot)} {
			must(t, a.as(w).Publish(subject, []byte(`{"schema":1,"device_id":"`+w.device+`"}`)))
		}
	}
	a.settle()
	js := a.jetStream()
	testwait.For(t, patience, "two devices' documents", func() bool {
		for _, s := range []string{"STATUS", "HEARTBEAT", "AUDIT", "JOBS", "KV_desired-state"} {
			if i, err := js.StreamInfo(s); err != nil || i.State.NumSubjects < 2 {
				return false
			}
		}
		return true
	})
	a.settle()
	a.drain()
	return a
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as is w's connection to the server from which the attack comes.
func (a *arena) as(w who) *conn { return a.again(w, "") }

// again is a further connection of w.
func (a *arena) again(w who, label string) *conn {
	a.t.Helper()
	key := fmt.Sprintf("%s %d %s", w.name, a.at, label)
	if c := a.conns[key]; c != nil {
		return c
	}
	nc, err := nats.Connect(a.servers[a.at].ClientURL(), nats.UserInfo(w.name, password), nats.CustomInboxPrefix(w.inbox()), nats.Name(key),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.errs[nc] = append(a.errs[nc], err.Error())
		}))
	if err != nil {
		a.t.Fatalf("connect as %s: %v", w.name, err)
	}
	a.owner.Cleanup(nc.Close)
	a.conns[key] = &conn{nc}
	return a.conns[key]
}

func (a *arena) watch(w who, subject string) {
	a.t.Helper()
	nc := a.as(w)
	_, err := nc.Subscribe(subject, func(m *nats.Msg) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reached = append(a.reached, received{w.name, m})
	})
	must(a.t, err)
	must(a.t, nc.Flush())
	if errs := a.refusals(nc, "Subscription"); len(errs) > 0 {
		a.t.Fatalf("%s may not watch %s: %v", w.name, subject, errs)
	}
}

// drain gives what reached the victims since the last call.
func (a *arena) drain() []received {
	a.mu.Lock()
	defer a.mu.Unlock()
	got := a.reached
	a.reached = nil
	return got
}

func (a *arena) jetStream() nats.JetStreamContext {
	a.t.Helper()
	js, err := a.as(controller).JetStream(nats.MaxWait(patience))
	must(a.t, err)
	return js
}

func (a *arena) refusals(c *conn, kind string) (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.errs[c.Conn] {
		if strings.Contains(strings.ToLower(e), strings.ToLower("permissions violation for "+kind)) {
			out = append(out, e)
		}
	}
	return out
}

// refusedPublish sends m and wants the server's permission violation for it.
func (a *arena) refusedPublish(w who, m *nats.Msg) {
	a.t.Helper()
	c := a.as(w)
	want := fmt.Sprintf("%q", m.Subject)
	before := len(a.refusals(c, "Publish to "+want))
	must(a.t, c.PublishMsg(m))
	must(a.t, c.Flush())
	testwait.For(a.t, patience, "refusal of "+w.name+" publishing "+m.Subject, func() bool {
		return len(a.refusals(c, "Publish to "+want)) > before
	})
}

// refusedSubscribe wants the server's permission violation for subject.
func (a *arena) refusedSubscribe(w who, subject, queue string) {
	a.t.Helper()
	c := a.as(w)
	want := fmt.Sprintf("Subscription to %q", subject)
	before := len(a.refusals(c, want))
	sub, err := c.QueueSubscribe(subject, queue, func(m *nats.Msg) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reached = append(a.reached, received{w.name, m})
	})
	must(a.t, err)
	must(a.t, c.Flush())
	testwait.For(a.t, patience, "refusal of "+w.name+" subscribing "+subject, func() bool { return len(a.refusals(c, want)) > before })
	// The server has refused it; this only forgets it in the client.
	if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrBadSubscription) {
		a.t.Fatal(err)
	}
}

// send publishes without waiting for anything.
func (a *arena) send(w who, subject, reply string, header nats.Header, body string) {
	a.t.Helper()
	must(a.t, a.as(w).PublishMsg(message(subject, reply, header, body)))
}

func message(subject, reply string, header nats.Header, body string) *nats.Msg {
	return &nats.Msg{Subject: subject, Reply: reply, Header: header, Data: []byte(body)}
}

// settle returns when whatever was sent before has had its effect: it sends
// honest messages by every path that an attack can take and waits for them.
func (a *arena) settle() {
	a.t.Helper()
	for _, c := range a.conns {
		must(a.t, c.Flush())
	}
	at := a.at
	defer func() { a.at = at }()
	var inboxes []*nats.Subscription
	a.probes++
	inbox := fmt.Sprintf("%s.probe%d", d3.inbox(), a.probes)
	for a.at = range a.servers {
		sub, err := a.as(d3).SubscribeSync(inbox)
		must(a.t, err)
		must(a.t, a.as(d3).Flush())
		defer sub.Unsubscribe()
		inboxes = append(inboxes, sub)
	}
	for a.at = range a.servers {
		// A report of d3 from this server is stored.
		body := fmt.Sprintf(`{"probe":"%d.%d"}`, a.probes, a.at)
		for subject, stream := range map[string]string{
			command.StatusSubject("d3"): "STATUS", command.HeartbeatSubject("d3"): "HEARTBEAT", command.AuditSubject("d3", command.VerbPing): "AUDIT",
			command.JobSubject("d3", slot): "JOBS",
		} {
			must(a.t, a.as(d3).Publish(subject, []byte(body)))
			testwait.For(a.t, patience, "report of d3 in "+stream, func() bool {
				m, err := a.jetStream().GetLastMsg(stream, subject)
				return err == nil && string(m.Data) == body
			})
		}
		// The answer of a read that was asked here reaches subscribers everywhere.
		// Interest in the inbox takes a moment to cross the route: ask until both saw it.
		for i, sub := range inboxes {
			testwait.For(a.t, patience, fmt.Sprintf("answer to d3 at server %d", i), func() bool {
				must(a.t, a.as(d3).PublishRequest("$JS.API.DIRECT.GET.AUDIT.fleet.audit.d3.ping", inbox, nil))
				_, err := sub.NextMsg(50 * time.Millisecond)
				return err == nil
			})
		}
		// So does the stream API's answer to one who may use it.
		if _, err := a.jetStream().UpdateStream(a.stream("KV_device-labels")); err != nil {
			a.t.Fatal(err)
		}
	}
	for _, c := range a.conns {
		must(a.t, c.Flush())
	}
}

func (a *arena) stream(name string) *nats.StreamConfig {
	a.t.Helper()
	info, err := a.jetStream().StreamInfo(name)
	must(a.t, err)
	return &info.Config
}

// snapshot is what the broker holds that no attack may change: the streams'
// configurations and consumers, and all messages of others than the attackers.
func (a *arena) snapshot() map[string]string {
	a.t.Helper()
	out := map[string]string{}
	js := a.jetStream()
	for name := range js.StreamNames() {
		info, err := js.StreamInfo(name, &nats.StreamInfoRequest{SubjectsFilter: ">"})
		if err != nil {
			out[name] = err.Error()
			continue
		}
		cfg, err := json.Marshal(info.Config)
		must(a.t, err)
		out[name] = fmt.Sprintf("%s consumers=%d", cfg, info.State.Consumers)
		for subject, count := range info.State.Subjects {
			// d1 attacks, d3 probes, and the deployer may write d9.
			if tokens := strings.Split(subject, "."); slices.ContainsFunc([]string{"d1", "d3", "d9"}, func(d string) bool { return slices.Contains(tokens, d) }) {
				continue
			}
			m, err := js.GetLastMsg(name, subject)
			must(a.t, err)
			out[name+" "+subject] = fmt.Sprintf("%d messages, last %d %x", count, m.Sequence, sha256.Sum256(m.Data))
		}
	}
	if len(out) < len(broker.Streams(broker.ProvisionOptions{})) {
		out["missing"] = fmt.Sprint(len(out))
	}
	return out
}

// difference tells what changed between two snapshots.
func difference(before, after map[string]string) (out []string) {
	for k := range before {
		if before[k] != after[k] {
			out = append(out, fmt.Sprintf("%s: was %.200s, is %.200s", k, before[k], after[k]))
		}
	}
	for k := range after {
		if _, ok := before[k]; !ok {
			out = append(out, fmt.Sprintf("%s: new, %.200s", k, after[k]))
		}
	}
	return slices.Sorted(slices.Values(out))
}

// caller is what a device learns of who sent m, by the rule of docs/protocol.md:
// ok is false where the device drops the message.
func caller(m *nats.Msg) (user string, ok bool) {
	var exact []string
	for name, values := range m.Header {
		if strings.EqualFold(name, "Nats-Request-Info") {
			if name != "Nats-Request-Info" {
				return "", false
			}
			exact = append(exact, values...)
		} else if strings.HasPrefix(strings.ToLower(name), "nats-") {
			return "", false
		}
	}
	if len(exact) != 1 {
		return "", false
	}
	var info struct{ Acc, User, Kind string }
	if json.Unmarshal([]byte(exact[0]), &info) != nil || info.Acc != "OPS" || info.Kind != "Client" || info.User == "" {
		return "", false
	}
	target, err := command.ParseSubject(m.Subject)
	if err != nil || target.Device != "d2" {
		return "", false
	}
	if target.Op != "" {
		return info.User, target.UID == command.UID(info.User)
	}
	return info.User, strings.HasPrefix(m.Reply, "_R_.")
}

func (r received) String() string {
	return fmt.Sprintf("%s on %s, reply %q, headers %v: %.120s", r.victim, r.msg.Subject, r.msg.Reply, slices.Sorted(maps.Keys(r.msg.Header)), r.msg.Data)
}

package stack

import (
	"bytes"
	"encoding/json"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/doctable"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

// attacks is the table of docs/security.md of what is tried against the whole
// system: real agents and client, the real callout, real tokens.
var attacks = []struct {
	by      string // who tries it
	what    string // what is tried
	refusal string // what holds
	seen    string // by which evidence
	run     func(t *testing.T)
}{
	{
		"anybody", "sign in with a token that is expired, not valid yet, of another audience, project or issuer, unsigned (`alg` none), signed with a public key as secret, spliced, of an unknown key, without a subject; as a device beyond the issuer's pattern; into an account of others",
		"`denied`", "no connection; the callout's log gives the reason of each", tokensOfOthers,
	}, {
		"anybody", "sign in with oversized tokens, and flood the callout with tokens of unknown keys", "`denied`",
		"no connection; an honest sign-in succeeds meanwhile, one with a key that was rotated in too", tokenFlood,
	}, {
		"device", "run an agent under another device's id with its own key", "permission violation",
		"no command reaches it; its log says so", anotherDevicesKey,
	}, {
		"device", "publish, read, receive or answer as another; have a command, desired state or a heartbeat of its making delivered to another; forge or push out another's audit records; answer in another's name; send what a client cannot digest",
		"permission violation; the other device drops what arrives; the client takes no false answer", "streams unchanged; no program ran; the other's audit whole", hostileDevice,
	}, {
		"device", "forge session output: a number left out, repeated or without an end, a false end", "an error at the caller",
		"never a short or long output that looks whole", forgedOutput,
	}, {
		"device", "fill its caller's memory with session output of great headers", "the session ends with an error", "memory of the caller's process", callersMemory,
	}, {
		"people", "verbs, sessions, streams and accounts beyond the role; reply subjects that do harm; another identity by header; the callout's own subjects",
		"permission violation; the device sees the true caller", "streams unchanged; no program ran; audit names the true caller", beyondTheRole,
	}, {
		"person with `exec`", "commands without id, deadline or instance, expired, in the far future, of two deadlines, malformed, oversized, repeated, with another payload, and under another caller's request id",
		"`bad_request`, `expired`, or the first reply again", "how often the program ran, for each", malformedRequests,
	}, {
		"people", "device ids that are wildcards, more than one token of a subject, or spaces", "`rejected`, before a subject is built", "nothing was published", deviceIDs,
	}, {
		"person with `exec`", "write into, read, end or take over another's session; its result", "permission violation; `not_found`", "the session ends with its own caller's input alone", foreignSession,
	}, {
		"person with `exec`", "credit beyond the window, for what was not sent, or backwards; input out of order; signals and sizes that do not exist", "ends the own session at most",
		"a session beside it goes on", brokenControl,
	}, {
		"person with `exec`", "open sessions without end", "`busy`", "another caller's session opens", manySessions,
	}, {
		"person with `exec`", "10,000 commands without a pause", "`ok` or `busy` for each", "others are served meanwhile and afterwards; their audit is kept", flood,
	}, {
		"person with `exec`", "on the host: root, the agent's environment and files, what outlives the session", "the policy's user, and nothing of it", "what the program reports of itself", beyondThePolicy,
	}, {
		"who reads logs and audit", "find arguments, environment, input or output of a program", "nothing of it is there", "every log line and record", programsOnRecord,
	}, {
		"who reads logs and audit", "find tokens, keys, passwords, seeds or session ids", "nothing of it is there", "every log line of all parts, and every record", secretsInLogs,
	},
}

func TestNoAttackOnTheWholeSystemSucceeds(t *testing.T) {
	for _, row := range attacks {
		t.Run(row.by+": "+row.what, row.run)
	}
}

var update = flag.Bool("update", false, "write the table of attacks into docs/security.md")

// The table of docs/security.md is made from the rows above.
func TestDocsCarryTheTable(t *testing.T) {
	table := doctable.Table{
		File: "../../docs/security.md", Name: "whole", Head: []string{"who", "tries", "expected refusal", "evidence"},
		Again: "go test ./internal/stack -run Docs -update",
	}
	for _, row := range attacks {
		table.Rows = append(table.Rows, []string{row.by, row.what, row.refusal, row.seen})
	}
	doctable.Check(t, table, *update)
}

// tokenFlood signs in with garbage as fast as it can, while honest people do.
func tokenFlood(t *testing.T) {
	a := newArena(t, Callout)
	attempt := func(token string) error {
		nc, err := a.dial(t.Context(), tokenSource(access.Ops, token), "_INBOX.x", "attacker")
		if err == nil {
			nc.Close()
		}
		return err
	}
	good := a.mint(t, adminUser, issuer.MintOptions{})
	for _, size := range []int{8 << 10, 20 << 10, 1 << 20} {
		if err := attempt(good + strings.Repeat("x", size)); err == nil {
			t.Errorf("a token with %d bytes too many got in", size)
		}
	}
	must(t, a.Issuer().RotateKeys())
	rotated := a.mint(t, adminUser, issuer.MintOptions{})
	stop, done := make(chan struct{}), make(chan int, 4)
	for range cap(done) {
		go func() {
			n := 0
			for ; ; n++ {
				select {
				case <-stop:
					done <- n
					return
				default:
				}
				token, err := a.Issuer().Mint(adminUser, issuer.MintOptions{OtherKey: true, KeyID: command.NewRequestID()})
				if err == nil && attempt(token) == nil {
					t.Error("a token of an unknown key got in")
				}
			}
		}()
	}
	testwait.For(t, patience, "honest people to get in, with the old key and the new one", func() bool { return attempt(good) == nil && attempt(rotated) == nil })
	close(stop)
	n := 0
	for range cap(done) {
		n += <-done
	}
	if n == 0 {
		t.Error("there was no flood")
	}
	t.Logf("%d false tokens meanwhile", n)
}

// forgedOutput plays a device that does not send what a session is to send.
func forgedOutput(t *testing.T) {
	a := newHostArena(t, "")
	device := a.signIn(t, "", a.mint(t, deviceUser(dev), issuer.MintOptions{}), command.DeviceInboxPrefix(dev))
	must(t, a.StopAgent(dev))
	uid := command.UID(command.UserName(a.Issuer().URL(), a.Issuer().UserID(adminUser)))
	type message struct {
		chunk command.Chunk
		end   string // the value of the header; empty: output
		body  string
	}
	chunk := func(seq uint64, body string) message {
		return message{chunk: command.Chunk{Seq: seq, Stream: command.StreamStdout}, body: body}
	}
	end := func(seq uint64, reason, body string) message {
		return message{chunk: command.Chunk{Seq: seq}, end: reason, body: body}
	}
	const whole = `{"exit_code":0,"bytes":{"stdout":2,"stderr":0},"error":null}`
	for name, messages := range map[string][]message{
		"a number left out":           {chunk(1, "a"), chunk(3, "b"), end(4, "eof", whole)},
		"an end before all of it":     {chunk(1, "a"), end(2, "eof", whole)},
		"more than the end says":      {chunk(1, "a"), chunk(2, "b"), chunk(3, "c"), end(4, "eof", whole)},
		"an end of a kind of its own": {chunk(1, "a"), chunk(2, "b"), end(3, "fine", whole)},
		"an end that is none":         {chunk(1, "a"), chunk(2, "b"), end(3, "eof", `[]`)},
		"number 0":                    {chunk(0, "a"), chunk(1, "b"), end(2, "eof", whole)},
	} {
		sub, err := device.Subscribe(command.Subject(dev, command.VerbLogs), func(m *nats.Msg) {
			request, err := command.DecodeRequest[command.LogsRequest](command.VerbLogs, m.Data)
			if err != nil || request.Session == nil {
				return
			}
			reply, _ := json.Marshal(command.SessionReply{Session: request.Session.ID})
			_ = m.Respond(reply)
			for _, one := range messages {
				out := &nats.Msg{Subject: command.SessionSubject(dev, uid, request.Session.ID), Data: []byte(one.body), Header: nats.Header{}}
				one.chunk.Write(out.Header)
				if one.end != "" {
					out.Header[command.HeaderEnd] = []string{one.end}
					delete(out.Header, command.HeaderStream)
				}
				_ = device.PublishMsg(out)
			}
		})
		must(t, err)
		must(t, device.Flush())
		var got bytes.Buffer
		begin := time.Now()
		if err := a.Client().Logs(t.Context(), dev, client.LogsOptions{Container: "web", Stdout: &got}); err == nil {
			t.Errorf("%s: taken for whole: %q", name, got.String())
		}
		t.Logf("%s: an error after %v", name, time.Since(begin).Round(time.Millisecond))
		must(t, sub.Unsubscribe())
		must(t, device.Flush())
	}
}

// deviceIDs asks for devices by ids that would be other subjects.
func deviceIDs(t *testing.T) {
	a := newArena(t, Callout)
	c, before := a.Client(), a.OperatorConn().Stats().OutMsgs
	for _, id := range []string{"*", ">", victim + ".exec", victim + ".ping x", "a b", "a\r\nPUB x 0\r\n", "", ".", "VM-DEVICE-01", strings.Repeat("a", 64), "-a", "a-", "ä", "a\x00", "_INBOX"} {
		_, ping := c.Ping(t.Context(), id)
		_, exec := c.Exec(t.Context(), id, client.ExecOptions{Host: true, Argv: []string{"true"}})
		logs := c.Logs(t.Context(), id, client.LogsOptions{Container: "web"})
		_, result := c.Result(t.Context(), id, command.NewRequestID())
		for verb, err := range map[string]error{"ping": ping, "exec": exec, "logs": logs, "result": result} {
			if outcome(err) != command.OutcomeRejected {
				t.Errorf("%s %q: %v", verb, id, err)
			}
		}
	}
	if n := a.OperatorConn().Stats().OutMsgs - before; n != 0 {
		t.Errorf("%d messages were published", n)
	}
	if n := a.runs.Load(); n != 0 {
		t.Errorf("exec ran %d times", n)
	}
}

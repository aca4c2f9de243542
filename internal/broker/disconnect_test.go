package broker

import (
	"bufio"
	"encoding/json"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
)

// realEvent is one of nats-server 2.15.2, as it came.
const realEvent = `{"type":"io.nats.server.advisory.v1.client_disconnect","id":"NoLNk4vmQsaMXkfLPHeYVw","timestamp":"2026-01-02T15:04:05.123456789Z",
"server":{"name":"fleet","host":"127.0.0.1","id":"NCA2WMTTEDQB6FXJDHXPFCAUK7LPC5DA36Q2QOVAVK67OPXRK7AZ6QCZ","ver":"2.15.2","jetstream":true,"flags":3,"seq":40,"time":"2026-01-02T15:04:05.2Z"},
"client":{"start":"2026-01-02T15:04:04Z","host":"127.0.0.1","id":9,"acc":"FLEET","user":"[REDACTED]","name":"fleet-agent vm-device-00","lang":"go","ver":"1.55.0","rtt":1000,"stop":"2026-01-02T15:04:05.1Z","kind":"Client","client_type":"nats"},
"sent":{"msgs":1,"bytes":0},"received":{"msgs":1,"bytes":300},"reason":"Client Closed"}`

func TestReadDisconnect(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(realEvent, old) {
			t.Fatalf("no %q in the event", old)
		}
		return strings.Replace(realEvent, old, new, 1)
	}
	for _, tt := range []struct {
		name, data, device, fails string
	}{
		{"a real one", realEvent, "vm-device-00", ""},
		{"by a stale connection", with("Client Closed", "Stale Connection"), "vm-device-00", ""},
		{"by the end of the token", with("Client Closed", "Authentication Expired"), "vm-device-00", ""},
		{"of a connection that was refused", with("Client Closed", "Authentication Failure"), "", "was not checked"},
		{"of one that took too long to sign in", with("Client Closed", "Authentication Timeout"), "", "was not checked"},
		{"of another client", with("fleet-agent vm-device-00", "nats cli"), "", "not named"},
		{"without a name", with(`"name":"fleet-agent vm-device-00",`, ""), "", "not named"},
		{"of no device id", with("fleet-agent vm-device-00", "fleet-agent a.b"), "", "not named"},
		{"of an empty device id", with("fleet-agent vm-device-00", "fleet-agent "), "", "not named"},
		{"of a leaf node", with(`"kind":"Client"`, `"kind":"Leafnode"`), "", "kind"},
		{"of a connection that begins", with("client_disconnect", "client_connect"), "", "type"},
		{"nothing", "", "", "JSON"},
		{"not an object", "[]", "", "cannot unmarshal"},
		{"too large", realEvent + strings.Repeat(" ", maxEvent), "", "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadDisconnect([]byte(tt.data))
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) || got != (Disconnect{}) {
					t.Fatalf("%+v, %v, want %q", got, err, tt.fails)
				}
				return
			}
			if err != nil || got.Device != tt.device || got.At.UnixNano() != time.Date(2026, 1, 2, 15, 4, 5, 123456789, time.UTC).UnixNano() || got.Reason == "" {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func FuzzReadDisconnect(f *testing.F) {
	f.Add([]byte(realEvent))
	f.Add([]byte(`{"client":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := ReadDisconnect(data); err == nil && command.CheckDeviceID(d.Device) != nil {
			t.Fatalf("device %q", d.Device)
		}
	})
}

func TestTheEndOfADevicesConnectionReachesControllers(t *testing.T) {
	srv := start(t, testConfig(t))
	data := dial(t, srv.ClientURL(), UserData, passwords.Data)
	events, err := data.SubscribeSync(access.Disconnected)
	if err != nil {
		t.Fatal(err)
	}
	if err := data.Flush(); err != nil {
		t.Fatal(err)
	}
	device := dial(t, srv.ClientURL(), UserDevice, passwords.Device, nats.Name(command.ConnectionName("d1")))
	person := dial(t, srv.ClientURL(), UserOps, passwords.Ops, nats.Name(command.ConnectionName("d2")))
	person.Close()
	device.Close()
	m, err := events.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := ReadDisconnect(m.Data); err != nil || d.Device != "d1" || d.Reason != "Client Closed" || time.Since(d.At) > time.Minute {
		t.Errorf("%+v, %v: %s", d, err, m.Data)
	}
	if n, _, _ := events.Pending(); n != 0 {
		t.Error("the end of a person's connection is told as well")
	}
}

// A client may sign in again on an open connection. The server takes its new name
// before it asks whether it may.
func TestANameFromARefusedSignInIsNotBelieved(t *testing.T) {
	srv := start(t, testConfig(t))
	data := dial(t, srv.ClientURL(), UserData, passwords.Data)
	events, err := data.SubscribeSync(access.Disconnected)
	if err != nil {
		t.Fatal(err)
	}
	if err := data.Flush(); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := bufio.NewReader(c)
	connect := func(name, password, want string) {
		t.Helper()
		line, err := json.Marshal(map[string]any{"name": name, "user": UserDevice, "pass": password})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("CONNECT " + string(line) + "\r\nPING\r\n")); err != nil {
			t.Fatal(err)
		}
		for {
			answer, err := answers.ReadString('\n')
			if err != nil {
				t.Fatalf("%v instead of %s", err, want)
			}
			if strings.HasPrefix(answer, want) {
				return
			}
		}
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	connect(command.ConnectionName("d1"), passwords.Device, "PONG")
	connect(command.ConnectionName("d2"), "wrong", "-ERR")
	// What comes after the server has done with it.
	dial(t, srv.ClientURL(), UserDevice, passwords.Device, nats.Name(command.ConnectionName("d3"))).Close()
	for {
		m, err := events.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		switch d, err := ReadDisconnect(m.Data); {
		case err == nil && d.Device == "d3":
			return
		case err == nil:
			t.Errorf("believed: %+v of %s", d, m.Data)
		}
	}
}

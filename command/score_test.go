package command

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// score is a deployment with one service that has these fields beside name and
// image.
func score(fields string) Score {
	if fields != "" {
		fields = "," + fields
	}
	return Score{Type: ScorePodmanV0, Data: json.RawMessage(`{"services":[{"name":"web","image":"busybox"` + fields + `}]}`)}
}

func TestServicesAreReadStrictly(t *testing.T) {
	for data, want := range map[string]string{
		``:                             "data: want a JSON object",
		`[]`:                           "data: want a JSON object",
		`{}`:                           "services: there must be at least one",
		`{"services":{}}`:              "services: want a list",
		`{"services":[{"name":"a"}]}`:  "services[0].image: missing",
		`{"services":[{"image":"b"}]}`: `services[0].name: name "" is empty`,
		`{"services":[{"name":"A","image":"b"}]}`:                                            `services[0].name: name "A" has "A"`,
		`{"services":[{"name":"a","image":"b"},{"name":"a","image":"b"}]}`:                   "services[1].name: a is the name of services[0] already",
		`{"services":[{"name":"a","image":"b","colour":1}]}`:                                 `unknown field "services[0].colour"`,
		`{"services":[{"name":"a","image":"b","Image":"c"}]}`:                                `unknown field "services[0].Image"`,
		`{"services":[{"name":"a","image":"b","image":"c"}]}`:                                `field "services[0].image" is given twice`,
		`{"services":[{"name":"a","image":"b","ports":[80]}]}`:                               "services[0].ports[0]: want a string",
		`{"services":[{"name":"a","image":"b","resources":{"cpus":"1"}}]}`:                   "services[0].resources.cpus: want a number",
		`{"services":[{"name":"a","image":"b","resources":{"memory_bytes":1.5}}]}`:           "cannot unmarshal number 1.5",
		`{"services":[{"name":"a","image":"b","command":` + strings.Repeat("[", 100) + `}]}`: "services[0].command[0]: want a string",
	} {
		_, err := Score{Type: ScorePodmanV0, Data: json.RawMessage(data)}.Services()
		if !errors.Is(err, &Error{Outcome: OutcomeRejected, Kind: KindBadRequest}) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %s", data, err, want)
		}
	}
	many := strings.Repeat(`{"name":"a","image":"b"},`, MaxServices) + `{"name":"a","image":"b"}`
	if _, err := (Score{Type: ScorePodmanV0, Data: json.RawMessage(`{"services":[` + many + `]}`)}).Services(); err == nil {
		t.Error("more services than allowed")
	}
}

func TestFieldsOfAServiceAreChecked(t *testing.T) {
	for fields, want := range map[string]string{
		`"ports":["1:1","80"]`:                       "services[0].ports[1]: ",
		`"ports":["1:1","1:2"]`:                      "services[0].ports[1]: host port 1/tcp is taken by ports[0]",
		`"ports":["127.0.0.1:1:1","1:2"]`:            "services[0].ports[1]: host port 1/tcp is taken",
		`"volumes":["a:/a","b:/a"]`:                  "services[0].volumes[1]: /a is the target of volumes[0] already",
		`"volumes":["a"]`:                            "services[0].volumes[0]: ",
		`"restart":"sometimes"`:                      `services[0].restart: "sometimes" is not`,
		`"pull":"daily"`:                             `services[0].pull: "daily" is not`,
		`"env":{"":"x"}`:                             `services[0].env: "" is not`,
		`"env":{"A=B":"x"}`:                          `services[0].env: "A=B" is not`,
		`"env":{"A":"\u0000"}`:                       `services[0].env.A: holds a zero byte`,
		`"command":["a","\u0000"]`:                   `services[0].command[1]: holds a zero byte`,
		`"entrypoint":["\u0000"]`:                    `services[0].entrypoint[0]: holds a zero byte`,
		`"workdir":"tmp"`:                            `services[0].workdir: "tmp" is not an absolute path`,
		`"user":"a b"`:                               `services[0].user: "a b" is not`,
		`"resources":{"memory_bytes":1}`:             `services[0].resources.memory_bytes: 1 is less`,
		`"resources":{"memory_bytes":-1}`:            `services[0].resources.memory_bytes: -1 is less`,
		`"resources":{"cpus":-1}`:                    `services[0].resources.cpus: -1 is not`,
		`"stop_timeout_s":-1`:                        `services[0].stop_timeout_s: -1 is not`,
		`"health":{}`:                                `services[0].health.command: missing`,
		`"health":{"command":["a"],"interval_s":-1}`: `services[0].health.interval_s: -1 is not`,
		`"health":{"command":["a"],"retries":-1}`:    `services[0].health.retries: -1 is not`,
	} {
		_, err := score(fields).Services()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", fields, err, want)
		}
	}
	got, err := score(`"command":["a"],"entrypoint":["/b"],"env":{"A":"="},"workdir":"/w","user":"1000:1000","ports":["80:80","80:80/udp"],
		"volumes":["/srv:/srv","data:/data:ro"],"restart":"no","pull":"always","resources":{"memory_bytes":6291456,"cpus":0.5},
		"health":{"command":["true"],"interval_s":1,"timeout_s":1,"retries":1,"start_period_s":1},"stop_timeout_s":1`).Services()
	if err != nil || len(got) != 1 || got[0].User != "1000:1000" || got[0].Health.Command[0] != "true" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestImageNames(t *testing.T) {
	sha := "@sha256:" + strings.Repeat("a", 64)
	for _, good := range []string{"busybox", "busybox:1", "docker.io/library/busybox:1.36", "localhost/hello:1", "127.0.0.1:5000/a/b:c", "[::1]:5000/a",
		"registry.example.com:5000/team/app_x/y-z" + sha, "a/b:T" + sha, "UPPER.example/app"} {
		if err := checkImage(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "Busybox", "a b", "a:", "a@sha256:1", "a//b", "/a", "a/", "-a", "a:b:c", "https://a/b", "a\n", strings.Repeat("a/", 300) + "a"} {
		if err := checkImage(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestPorts(t *testing.T) {
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for text, want := range map[string]Port{
		"8080:80":           {HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"1:65535/udp":       {HostPort: 1, ContainerPort: 65535, Protocol: "udp"},
		"0.0.0.0:53:53/udp": {HostPort: 53, ContainerPort: 53, Protocol: "udp"},
		"127.0.0.1:53:54":   {HostIP: v4, HostPort: 53, ContainerPort: 54, Protocol: "tcp"},
		"[::1]:53:54/tcp":   {HostIP: v6, HostPort: 53, ContainerPort: 54, Protocol: "tcp"},
	} {
		if got, err := ParsePort(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "80", ":80", "80:", "0:80", "80:0", "65536:1", "1:65536", "080:80", "+80:80", "80:80/sctp", "80:80/", "::1:80:80", "a:80:80", "[::1:80:80", "1:2:3", "fe80::1%eth0:1:1", "[fe80::1%eth0]:1:1"} {
		if got, err := ParsePort(bad); err == nil {
			t.Errorf("%q is taken as %+v", bad, got)
		}
	}
	a, b := Port{HostPort: 1, Protocol: "tcp"}, Port{HostIP: v4, HostPort: 1, Protocol: "tcp"}
	if !a.Conflicts(b) || !b.Conflicts(a) || b.Conflicts(Port{HostIP: v6, HostPort: 1, Protocol: "tcp"}) || a.Conflicts(Port{HostPort: 1, Protocol: "udp"}) || a.Conflicts(Port{HostPort: 2, Protocol: "tcp"}) {
		t.Error("conflicts are not what they should be")
	}
}

func TestVolumes(t *testing.T) {
	for text, want := range map[string]Volume{
		"/srv/data:/data": {Source: "/srv/data", Target: "/data"},
		"data:/data:ro":   {Source: "data", Target: "/data", ReadOnly: true},
		"/:/host:rw":      {Source: "/", Target: "/host"},
	} {
		if got, err := ParseVolume(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "/a", "a:b", "a:/", "a:/b/", "a:/b/../c", "/a/../b:/c", "/a/:/c", "a:/b:z", "a:/b:ro:x", ":/b", "../a:/b", "a b:/c", "a\n:/c", "/a\x00:/c"} {
		if got, err := ParseVolume(bad); err == nil {
			t.Errorf("%q is taken as %+v", bad, got)
		}
	}
}

func TestSplitTellsDeploymentsApart(t *testing.T) {
	d := DesiredState{Schema: Schema, Deployments: map[string]Score{
		"good": score(`"ports":["1:1"]`), "bad": score(`"ports":["2:2","x"]`), "helm": {Type: "HelmV1"}, "Bad Name": score(""),
		"late": score(`"ports":["3:3","1:9"]`), "free": score(`"ports":["2:2","3:3"]`), "again": score(`"ports":["2:2/udp"]`),
	}}
	services, rejected := d.Split()
	if got := slices.Sorted(maps.Keys(services)); !slices.Equal(got, []string{"again", "free", "good"}) {
		t.Errorf("to be run: %v", got)
	}
	for name, want := range map[string]string{
		"bad": "deployments.bad.services[0].ports[1]: ", "helm": `deployments.helm.type: score type "HelmV1" is not known`,
		"Bad Name": `deployments: name "Bad Name" has`, "late": "deployments.late.services[0].ports[0]: host port 3/tcp is taken by deployments.free.services[0].ports[1]",
	} {
		e := rejected[name]
		if e == nil || e.Kind != KindBadRequest || !strings.HasPrefix(e.Message, want) {
			t.Errorf("%s: %v, want %s", name, e, want)
		}
	}
	if len(rejected) != 4 {
		t.Errorf("%v", rejected)
	}
}

func TestAWritersDocumentIsReadStrictly(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                                  "want a JSON object",
		`{"deployments":{}}`:                  `want "schema":1, not 0`,
		`{"schema":1}`:                        "deployments: missing",
		`{"schema":1,"deployments":{},"x":1}`: `unknown field "x"`,
		`{"schema":1,"deployments":{"a":{"type":"HelmV1","data":{}},"b":{"type":"X","data":{}}}}`:                 "deployments.a.type: score type \"HelmV1\" is not known; known is PodmanV0\ndeployments.b.type",
		`{"schema":1,"deployments":{"a":{"type":"X","data":` + strings.Repeat("[", 100_000) + `}}}`:               "nested deeper",
		`{"schema":1,"deployments":{}}` + strings.Repeat(" ", MaxDocument+1-len(`{"schema":1,"deployments":{}}`)): "more than the 524288 allowed",
	} {
		if _, err := ParseDesiredState([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %s", text, err, want)
		}
	}
	frame := `{"schema":1,"deployments":{"a":{"type":"PodmanV0","data":{"services":[{"name":"a","image":"b"}]}}}}`
	if _, err := ParseDesiredState([]byte(frame + strings.Repeat("\n", MaxDocument-len(frame)))); err != nil {
		t.Errorf("a document at the limit: %v", err)
	}
}

// FuzzServices: whatever is taken can be written and is taken again, the same.
func FuzzServices(f *testing.F) {
	f.Add([]byte(`{"services":[{"name":"a","image":"b","ports":["1:1"],"volumes":["a:/b"],"env":{"A":"b"},"health":{"command":["c"]}}]}`))
	f.Add([]byte(`{"services":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		services, err := Score{Type: ScorePodmanV0, Data: data}.Services()
		if err != nil {
			return
		}
		again, err := json.Marshal(PodmanV0{Services: services})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (Score{Type: ScorePodmanV0, Data: again}).Services(); err != nil && len(again) <= MaxDocument {
			t.Errorf("%s is taken, and not when written as %s: %v", data, again, err)
		}
	})
}

func FuzzDesiredState(f *testing.F) {
	f.Add([]byte(`{"schema":1,"deployments":{"a":{"type":"PodmanV0","data":{"services":[{"name":"a","image":"b"}]}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDesiredState(data)
		if err != nil {
			return
		}
		// What a writer takes, a device takes.
		onDevice, err := DecodeDocument[DesiredState](data)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if _, rejected := onDevice.Split(); len(rejected) > 0 || len(onDevice.Deployments) != len(d.Deployments) {
			t.Errorf("%s: %v", data, rejected)
		}
	})
}

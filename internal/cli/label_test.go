package cli

import (
	"maps"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
)

func TestLabelArguments(t *testing.T) {
	changes, err := parseLabelChanges([]string{"site=lab", "example.com/rack=", "old-"})
	if err != nil || len(changes) != 3 || *changes[0].value != "lab" || *changes[1].value != "" || changes[2].value != nil || changes[2].name != "old" {
		t.Fatalf("got %+v, %v", changes, err)
	}
	for _, bad := range []string{"site", "=x", "-", "a b=c", "a=b c", "a=b=c", strings.Repeat("a", 64) + "=x", "a=" + strings.Repeat("a", 64), "-a=b", "a/=b", "/a=b"} {
		if _, err := parseLabelChanges([]string{bad}); err == nil || exitCode(err) != 2 {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := parseLabelChanges([]string{"a=b", "a-"}); err == nil {
		t.Error("one label set and taken away at once")
	}
}

func TestSelector(t *testing.T) {
	got, err := parseSelector([]string{"a=b,c=d", "e="})
	if want := map[string]string{"a": "b", "c": "d", "e": ""}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "a", "a=b,", "a=b,a=c", "a=*"} {
		if _, err := parseSelector([]string{bad}); err == nil || exitCode(err) != 2 {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAuditChainShowsWhatIsMissing(t *testing.T) {
	chains := newAuditChains()
	raw := func(s string) []byte { return []byte(s) }
	step := func(name, want string, r command.AuditRecord, bytes string) {
		t.Helper()
		r.DeviceID = "d"
		if got, fresh := chains.add(r, raw(bytes)); !fresh || (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	hash := func(s string) string { return command.AuditHash(raw(s)) }
	step("first seen", "", command.AuditRecord{Instance: "i", Seq: 7, Prev: "whatever"}, "7")
	step("next", "", command.AuditRecord{Instance: "i", Seq: 8, Prev: hash("7")}, "8")
	step("two missing", "2 records are missing", command.AuditRecord{Instance: "i", Seq: 11, Prev: "h10"}, "11")
	step("changed", "not the one", command.AuditRecord{Instance: "i", Seq: 12, Prev: "h11"}, "12")
	step("restart that fits", "", command.AuditRecord{Instance: "j", Seq: 1, Prev: hash("12")}, "j1")
	step("restart with a hole", "across a restart", command.AuditRecord{Instance: "k", Seq: 3, Prev: "hx"}, "k3")
	if gap, fresh := chains.add(command.AuditRecord{DeviceID: "d", Instance: "k", Seq: 3, Prev: "hx"}, raw("k3")); gap != "" || fresh {
		t.Errorf("the same record again: %q, fresh %v", gap, fresh)
	}
	step("out of order", "out of order", command.AuditRecord{Instance: "k", Seq: 2, Prev: "hy"}, "k2")
	step("new disk", "starts anew", command.AuditRecord{Instance: "l", Seq: 1}, "l1")
	step("lost", "5 records", command.AuditRecord{Instance: "l", Seq: 7, Prev: "hx", Lost: 5}, "l7")
	other := command.AuditRecord{DeviceID: "e", Instance: "i", Seq: 3, Prev: "x"}
	if got, _ := chains.add(other, raw("e3")); got != "" {
		t.Errorf("another device: %q", got)
	}
}

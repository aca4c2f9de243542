package access

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/command"
)

var update = flag.Bool("update", false, "write testdata/*.json")

// uid stands for a caller in the golden files.
var uid = command.UID("https://id.example#alice")

// What each role may do is pinned to the letter: a new permission shows up as a
// change of a file under testdata.
func TestPermissionsOfRoles(t *testing.T) {
	for _, role := range Roles() {
		for _, account := range role.Accounts() {
			t.Run(fmt.Sprintf("%s in %s", role, account), func(t *testing.T) {
				var p Permissions
				if role == RoleDevice {
					p = ForDevice("vm-device-00")
				} else {
					var err error
					if p, err = ForPerson(account, uid, []Role{role}); err != nil {
						t.Fatal(err)
					}
				}
				golden(t, fmt.Sprintf("%s.%s.json", role, account), p)
			})
		}
	}
}

func golden(t *testing.T, name string, p Permissions) {
	t.Helper()
	var out strings.Builder
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != out.String() {
		t.Errorf("%s differs; run go test -update and read the change:\n%s", path, out.String())
	}
}

func TestWhichRoleEntersWhere(t *testing.T) {
	for _, tt := range []struct {
		roles  []Role
		asked  Account
		placed Account // empty: no access
	}{
		{[]Role{RoleViewer}, Ops, Ops},
		{[]Role{RoleViewer}, Data, ""},
		{[]Role{RoleAuditor}, Data, ""},
		{[]Role{RoleDeployer}, Data, Deploy},
		{[]Role{RoleDeployer}, Ops, ""},
		{[]Role{RoleDeployer}, Deploy, ""},
		{[]Role{RoleDeployer, RoleViewer}, Ops, Ops},
		{[]Role{RoleDeployer, RoleViewer}, Data, Deploy},
		{[]Role{RoleDeployer, RoleController}, Data, Data},
		{[]Role{RoleDeployer, RoleAdmin}, Data, Data},
		{[]Role{RoleController}, Data, Data},
		{[]Role{RoleController}, Ops, ""},
		{[]Role{RoleAdmin}, Ops, Ops},
		{[]Role{RoleAdmin}, Data, Data},
		{[]Role{RoleAdmin}, Fleet, ""},
		{[]Role{RoleDevice}, Fleet, ""}, // a device is no person
		{[]Role{RoleDevice, RoleViewer}, Fleet, ""},
		{[]Role{"fleet-root"}, Ops, ""},
		{nil, Ops, ""},
		{[]Role{RoleAdmin}, "", ""},
		{[]Role{RoleAdmin}, "SYS", ""},
	} {
		t.Run(fmt.Sprintf("%v asks for %q", tt.roles, tt.asked), func(t *testing.T) {
			p, err := ForPerson(tt.asked, uid, tt.roles)
			if tt.placed == "" {
				var none NoAccessError
				if !errors.As(err, &none) || none.Account != tt.asked {
					t.Fatalf("got %+v, %v", p, err)
				}
				return
			}
			if err != nil || p.Account != tt.placed {
				t.Fatalf("placed in %q, %v", p.Account, err)
			}
		})
	}
}

func TestRolesTogetherGiveTheSumAndNoMore(t *testing.T) {
	both, err := ForPerson(Ops, uid, []Role{RoleViewer, RoleAuditor, RoleDeployer, RoleDevice})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, r := range []Role{RoleViewer, RoleAuditor} {
		p, err := ForPerson(Ops, uid, []Role{r})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, p.Publish...)
	}
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(both.Publish, want) {
		t.Errorf("got %q, want %q", both.Publish, want)
	}
}

func TestUIDAndDeviceIDCannotWidenPermissions(t *testing.T) {
	for _, bad := range []string{"", "*", ">", "a.b", uid + ".>", strings.ToUpper(uid), uid[:25], "_INBOX." + uid} {
		if p, err := ForPerson(Ops, bad, []Role{RoleAdmin}); err == nil {
			t.Errorf("uid %q gives %q", bad, p.Subscribe)
		}
	}
	for _, bad := range []string{"", ">", "a.b", "*.x", "d1.>", "D1", "-d"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("device id %q gives permissions", bad)
				}
			}()
			ForDevice(bad)
		}()
	}
}

// With one reply allowed to each message that it receives, a device that could
// publish what it receives would choose where it may publish.
func TestADeviceReceivesNothingThatItPublishes(t *testing.T) {
	for _, id := range []string{"d1", AnyDevice} {
		p := ForDevice(id)
		for _, pub := range p.Publish {
			for _, sub := range p.Subscribe {
				if overlap(pub, sub) {
					t.Errorf("%s: may publish %s and receive it on %s", id, pub, sub)
				}
			}
		}
		if p.Responses != 1 {
			t.Errorf("%s: %d responses", id, p.Responses)
		}
	}
}

func TestADeviceHasItsOwnSubjectsOnly(t *testing.T) {
	one, two := ForDevice("d1"), ForDevice("d2")
	for _, a := range slices.Concat(one.Publish, one.Subscribe) {
		if a != UserInfo && !slices.Contains(strings.Split(a, "."), "d1") {
			t.Errorf("%s does not name the device", a)
		}
		for _, b := range slices.Concat(two.Publish, two.Subscribe) {
			if a != UserInfo && overlap(a, b) {
				t.Errorf("d1's %s and d2's %s overlap", a, b)
			}
		}
	}
}

// Whoever shares an account with the streams must own them.
func TestOnlyOwnersOfTheStreamsArePlacedInData(t *testing.T) {
	for _, r := range Roles() {
		if r == RoleDevice {
			continue
		}
		for _, account := range r.Accounts() {
			p, err := ForPerson(account, uid, []Role{r})
			if err != nil {
				t.Fatal(err)
			}
			if owner := slices.Contains(p.Publish, "$JS.API.>"); owner != (p.Account == Data) {
				t.Errorf("%s is placed in %s, owner %v", r, p.Account, owner)
			}
		}
	}
}

func TestAccountNames(t *testing.T) {
	names := Accounts{Ops: "O", Deploy: "W"}
	for account, want := range map[Account]string{Ops: "O", Data: "DATA", Deploy: "W", Fleet: "FLEET", "x": "", "": ""} {
		if got := names.Name(account); got != want {
			t.Errorf("%q: %q, want %q", account, got, want)
		}
	}
	for _, r := range Roles() {
		if !r.Known() || len(r.Accounts()) == 0 {
			t.Errorf("%s: known %v, accounts %v", r, r.Known(), r.Accounts())
		}
	}
	if Role("fleet-root").Known() || Role("").Known() {
		t.Error("unknown roles are known")
	}
}

// overlap tells whether a subject can match both patterns.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; ; i++ {
		switch {
		case i == len(x) || i == len(y):
			return len(x) == len(y)
		case x[i] == ">" || y[i] == ">":
			return true
		case x[i] != "*" && y[i] != "*" && x[i] != y[i]:
			return false
		}
	}
}

package attack

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/harmony-fleet/fleet/internal/access"
)

// A table in which nothing ever succeeds may be blind. Here a defence is taken
// away, and the attack that it stops must be seen to succeed.
func TestTheTableSeesWhatSucceeds(t *testing.T) {
	find := func(part string) attack {
		for _, row := range append(deviceAttacks, peopleAttacks...) {
			if strings.Contains(row.what, part) {
				return row
			}
		}
		t.Fatalf("no attack %q", part)
		return attack{}
	}
	for _, tt := range []struct {
		without string
		servers int
		variant variant
		row     attack
		want    string // part of what is reported
	}{
		{
			without: "deployers apart from the streams", servers: 1,
			variant: variant{user: func(w who, p *access.Permissions) {
				if w.name == deployer.name {
					p.Account = access.Data
				}
			}},
			row: find("have an acknowledgement, a stored document"), want: "fleet.status.d2",
		}, {
			without: "reports by way of the one service export", servers: 2, variant: variant{config: reportsByStream},
			row: find("another device's status, heartbeat, audit or labels"), want: "fleet.status.d2",
		},
	} {
		t.Run(tt.without, func(t *testing.T) {
			a := newArena(t, tt.servers, tt.variant)
			row := tt.row
			run := row.run
			row.run = func(a *arena) {
				if tt.servers == 1 {
					// The whole row would delete the streams that the arena needs.
					a.readTo(deployer, "$JS.API.DIRECT.GET.KV_desired-state.$KV.desired-state.*", "fleet.status.d2")
					return
				}
				run(a)
			}
			problems := strings.Join(a.try(t, row), "\n")
			if !strings.Contains(problems, tt.want) {
				t.Errorf("the attack was not seen to succeed: %s", problems)
			}
		})
	}
}

// reportsByStream gives the reports of devices to DATA by stream exports.
func reportsByStream(text string) string {
	var cfg map[string]any
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		panic(err)
	}
	accounts := cfg["accounts"].(map[string]any)
	fleet, data := accounts["FLEET"].(map[string]any), accounts["DATA"].(map[string]any)
	dataImports, _ := data["imports"].([]any)
	var imports []any
	for _, i := range fleet["imports"].([]any) {
		service, _ := i.(map[string]any)["service"].(map[string]any)
		subject, _ := service["subject"].(string)
		// The results of jobs are not exported as a stream to anybody.
		if !strings.HasPrefix(subject, "fleet.") || strings.HasPrefix(subject, "fleet.job.") {
			imports = append(imports, i)
			continue
		}
		for _, e := range fleet["exports"].([]any) {
			if export := e.(map[string]any); export["stream"] == subject {
				export["accounts"] = []any{"OPS", "DATA"}
			}
		}
		dataImports = append(dataImports, map[string]any{"stream": map[string]any{"account": "FLEET", "subject": subject}})
	}
	fleet["imports"], data["imports"] = imports, dataImports
	var out strings.Builder
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // nats-server's parser knows no \u
	if err := enc.Encode(cfg); err != nil {
		panic(err)
	}
	return out.String()
}

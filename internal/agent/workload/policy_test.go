package workload

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/command"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPolicyPatterns(t *testing.T) {
	for name, c := range map[string]struct {
		policy                      Policy
		caller, deployment, service string
		allowed                     bool
	}{
		"nothing is said":               {Policy{}, "ops", "hello", "web", true},
		"service":                       {Policy{Containers: []string{"web"}}, "ops", "hello", "web", true},
		"part of a service":             {Policy{Containers: []string{"we"}}, "ops", "hello", "web", false},
		"services by pattern":           {Policy{Containers: []string{"db", "we*"}}, "ops", "hello", "web", true},
		"deployment":                    {Policy{Containers: []string{"hello/*"}}, "ops", "hello", "web", true},
		"another deployment":            {Policy{Containers: []string{"shop/*"}}, "ops", "hello", "web", false},
		"a star is not a slash":         {Policy{Containers: []string{"*web"}}, "ops", "hello", "web", true}, // the service alone
		"no container":                  {Policy{Containers: []string{}}, "ops", "hello", "web", false},
		"caller of an issuer":           {Policy{Callers: []string{"https://id.example#*"}}, "https://id.example#alice/x", "hello", "web", true},
		"caller of another issuer":      {Policy{Callers: []string{"https://id.example#*"}}, "https://evil.example/https://id.example#alice", "hello", "web", false},
		"one caller":                    {Policy{Callers: []string{"https://id.example#alice"}}, "https://id.example#alice", "hello", "web", true},
		"a caller whose name goes on":   {Policy{Callers: []string{"https://id.example#alice"}}, "https://id.example#alice2", "hello", "web", false},
		"no caller":                     {Policy{Callers: []string{}}, "ops", "hello", "web", false},
		"verb":                          {Policy{Verbs: []command.Verb{command.VerbLogs}}, "ops", "hello", "web", true},
		"another verb":                  {Policy{Verbs: []command.Verb{command.VerbExec}}, "ops", "hello", "web", false},
		"no verb":                       {Policy{Verbs: []command.Verb{}}, "ops", "hello", "web", false},
		"a caller in a character class": {Policy{Callers: []string{"[a-c]lice"}}, "alice", "hello", "web", true},
	} {
		err := c.policy.caller(command.VerbLogs, c.caller)
		if err == nil {
			err = c.policy.container(command.VerbLogs, c.deployment, c.service)
		}
		if (err == nil) != c.allowed || (err != nil && kindOf(err) != command.KindDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Policy{}).host(command.VerbExec); kindOf(err) != command.KindDenied {
		t.Errorf("the host without a word about it: %v", err)
	}
}

func TestPolicyIsValidated(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		says   string // empty: it is valid
	}{
		"nothing":        {Policy{}, ""},
		"everything":     {Policy{Verbs: []command.Verb{"logs"}, Containers: []string{"*"}, Callers: []string{"*"}, Host: true, HostUser: "nobody", MaxSessions: 1, MaxSessionsPerCaller: 1, MaxDuration: time.Hour, IdleTimeout: time.Minute}, ""},
		"verb":           {Policy{Verbs: []command.Verb{"ping"}}, "policy.verbs"},
		"pattern":        {Policy{Containers: []string{"["}}, "policy.containers"},
		"empty pattern":  {Policy{Callers: []string{""}}, "policy.callers"},
		"sessions":       {Policy{MaxSessions: -1}, "policy.max_sessions"},
		"duration":       {Policy{IdleTimeout: -1}, "policy.idle_timeout"},
		"host, no user":  {Policy{Host: true}, "exec.user"},
		"a user, no use": {Policy{HostUser: "root"}, ""},
	} {
		err := c.policy.Validate()
		if (err == nil) != (c.says == "") || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

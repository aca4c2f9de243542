package rbac

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// No rule is wider than what it names.
func TestRights(t *testing.T) {
	for name, list := range map[string][]rbacv1.PolicyRule{"cluster": Cluster(), "own": Own(), "deployments": Deployments()} {
		if len(list) == 0 {
			t.Errorf("%s: no rules", name)
		}
		for _, rule := range list {
			for _, words := range [][]string{rule.APIGroups, rule.Resources, rule.Verbs} {
				if len(words) == 0 || slices.Contains(words, "*") {
					t.Errorf("%s: %+v", name, rule)
				}
			}
			if slices.Contains(rule.Resources, "secrets") || slices.Contains(rule.Resources, "pods") {
				t.Errorf("%s: %+v", name, rule)
			}
			if slices.Contains(rule.Resources, "devices") && slices.Contains(rule.Verbs, "delete") {
				t.Errorf("%s: the operator deletes no Device: %+v", name, rule)
			}
		}
	}
}

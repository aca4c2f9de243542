package rbac

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/harmony-fleet/fleet/internal/operator"
)

// The rights are those that the operator asks for when it starts: none is missing, and
// none is there for nothing.
func TestRightsAreThoseThatTheOperatorNeeds(t *testing.T) {
	granted, needed := map[string]bool{}, map[string]bool{}
	for scope, list := range map[string][]rbacv1.PolicyRule{
		"": Cluster("own"), "own": Own(), "default": Default(), "shop": Deployments(),
	} {
		for _, rule := range list {
			names := rule.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, name := range names {
						for _, verb := range rule.Verbs {
							granted[right(scope, group, resource, name, verb)] = true
						}
					}
				}
			}
		}
	}
	for _, rule := range operator.Rules("own", []string{"shop"}) {
		for _, verb := range rule.Verbs {
			needed[right(rule.Namespace, rule.Group, rule.Resource, rule.Name, verb)] = true
		}
	}
	for r := range maps.Keys(needed) {
		if !granted[r] {
			t.Errorf("missing: %s", r)
		}
	}
	for r := range maps.Keys(granted) {
		if !needed[r] {
			t.Errorf("for nothing: %s", r)
		}
	}
	if len(needed) == 0 || slices.Contains(slices.Collect(maps.Keys(granted)), "*") {
		t.Error("no rights")
	}
}

func right(scope, group, resource, name, verb string) string {
	return fmt.Sprintf("%s %s.%s %q in %q", verb, resource, group, name, scope)
}

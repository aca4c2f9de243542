// Package rbac holds the rights that the operator needs in a cluster, and no more: as
// files that the Helm chart takes in, and as values for programs.
package rbac

import (
	"embed"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

//go:embed *.yaml
var files embed.FS

// Cluster are the rules that hold in the whole cluster, for an operator of that
// namespace.
func Cluster(namespace string) []rbacv1.PolicyRule {
	return append(rules("cluster.yaml"), rbacv1.PolicyRule{
		APIGroups: []string{""}, Resources: []string{"namespaces"}, ResourceNames: []string{namespace}, Verbs: []string{"get"},
	})
}

// Own are the rules in the operator's namespace.
func Own() []rbacv1.PolicyRule { return rules("own.yaml") }

// Default are the rules in the namespace "default".
func Default() []rbacv1.PolicyRule { return rules("default.yaml") }

// Deployments are the rules in each namespace whose Deployments are carried out.
func Deployments() []rbacv1.PolicyRule { return rules("deployments.yaml") }

func rules(name string) (list []rbacv1.PolicyRule) {
	raw, err := files.ReadFile(name)
	if err == nil {
		err = yaml.UnmarshalStrict(raw, &list)
	}
	if err != nil {
		panic(fmt.Sprintf("rbac: %s: %v", name, err)) // a test reads them all
	}
	return list
}

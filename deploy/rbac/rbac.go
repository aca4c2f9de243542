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

// Cluster are the rules that hold in the whole cluster, Own those in the operator's
// namespace, and Deployments those in each namespace whose Deployments it carries out.
func Cluster() []rbacv1.PolicyRule     { return rules("cluster.yaml") }
func Own() []rbacv1.PolicyRule         { return rules("own.yaml") }
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

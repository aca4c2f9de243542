package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pelletier/go-toml/v2"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/deploy/crds"
	"github.com/harmony-fleet/fleet/deploy/rbac"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
	"github.com/harmony-fleet/fleet/internal/access"
)

// ComponentOperator is the name of the operator's Pod.
const ComponentOperator = "fleet-operator"

// Operator is the Kubernetes operator as a component, with the rights that it needs and
// no more. It owns the stack's Devices and carries out the Deployments of the stack's
// namespace. In callout mode it signs in with the token of its ServiceAccount.
//
//	stack := e2e.New(t, e2e.Options{NumDevices: 3, Components: []e2e.Component{e2e.Operator()}})
//
// The definitions of Device and Deployment are installed in the cluster, and stay there.
func Operator() Component {
	return Component{
		Name:    ComponentOperator,
		Program: image.Program{Name: "fleet-operator", Package: "./cmd/fleet-operator"},
		Args:    []string{"--config", filesDir + "/fleet-operator.toml"},
		Roles:   []string{string(access.RoleController)},
		Files:   operatorFiles,
		Prepare: prepareOperator,
		Edit:    callsCluster,
	}
}

func operatorFiles(site Site) (map[string][]byte, error) {
	text, err := toml.Marshal(map[string]any{
		"nats":        map[string]any{"url": site.NATSURL, "tls": map[string]any{"ca": filesDir + "/ca.pem"}},
		"credentials": site.login(),
		"kubernetes":  map[string]any{"namespace": site.Namespace, "leader_election": false},
		"log":         map[string]any{"level": "debug"},
	})
	if err != nil {
		return nil, fmt.Errorf("configuration of the operator: %w", err)
	}
	return map[string][]byte{"fleet-operator.toml": text}, nil
}

// prepareOperator makes what the operator needs in the cluster. What is not in the
// namespace is owned by it, and goes when it goes.
func prepareOperator(ctx context.Context, config *rest.Config, site Site) error {
	kube, done, err := kubeapi.Client(config)
	if err != nil {
		return err
	}
	defer done()
	ns, err := kube.CoreV1().Namespaces().Get(ctx, site.Namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", site.Namespace, err)
	}
	return together(
		func() error { return installCRDs(ctx, kube) },
		func() error { return grant(ctx, kube, ns) },
	)
}

// grant gives the ServiceAccount of the operator, which it makes, its rights.
func grant(ctx context.Context, kube kubernetes.Interface, ns *corev1.Namespace) error {
	const own, deployments = ComponentOperator + "-own", ComponentOperator
	clusterWide := ComponentOperator + "-" + ns.Name
	owned := metav1.ObjectMeta{Name: clusterWide, OwnerReferences: []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Namespace", Name: ns.Name, UID: ns.UID,
	}}}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: ComponentOperator, Namespace: ns.Name}}
	ref := func(kind, name string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
	}
	api := kube.RbacV1()
	calls := []func() error{
		func() error {
			_, err := kube.CoreV1().ServiceAccounts(ns.Name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: ComponentOperator}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := api.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: owned, Rules: rbac.Cluster(ns.Name)}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := api.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: owned, RoleRef: ref("ClusterRole", clusterWide), Subjects: subjects}, metav1.CreateOptions{})
			return err
		},
	}
	for _, role := range []struct {
		namespace string
		meta      metav1.ObjectMeta
		rules     []rbacv1.PolicyRule
	}{
		{ns.Name, metav1.ObjectMeta{Name: own}, rbac.Own()},
		{ns.Name, metav1.ObjectMeta{Name: deployments}, rbac.Deployments()},
		{metav1.NamespaceDefault, owned, rbac.Default()},
	} {
		calls = append(calls, func() error {
			_, err := api.Roles(role.namespace).Create(ctx, &rbacv1.Role{ObjectMeta: role.meta, Rules: role.rules}, metav1.CreateOptions{})
			return err
		}, func() error {
			_, err := api.RoleBindings(role.namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: role.meta, RoleRef: ref("Role", role.meta.Name), Subjects: subjects}, metav1.CreateOptions{})
			return err
		})
	}
	if err := together(calls...); err != nil {
		return fmt.Errorf("grant the operator its rights: %w", err)
	}
	return nil
}

const crdPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"

// installCRDs installs the definitions of this tree, over others, and waits until the
// cluster serves them. Stacks of one tree may do so at the same time.
func installCRDs(ctx context.Context, kube kubernetes.Interface) error {
	entries, err := crds.Files.ReadDir(".")
	if err != nil {
		return fmt.Errorf("install the definitions: %w", err)
	}
	var calls []func() error
	for _, e := range entries {
		calls = append(calls, func() error { return installCRD(ctx, kube, e.Name()) })
	}
	return together(calls...)
}

func installCRD(ctx context.Context, kube kubernetes.Interface, file string) error {
	raw, err := crds.Files.ReadFile(file)
	if err != nil {
		return fmt.Errorf("install the definitions: %w", err)
	}
	var head metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(raw, &head); err != nil {
		return fmt.Errorf("install the definitions: %s: %w", file, err)
	}
	client := kube.CoreV1().RESTClient()
	_, err = client.Patch(types.ApplyPatchType).AbsPath(crdPath+head.Name).Param("fieldManager", "harmony-fleet-e2e").Param("force", "true").Body(raw).DoRaw(ctx)
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("install %s: this user of the cluster may not: have it installed with: kubectl apply --server-side -f deploy/crds: %w", head.Name, err)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", head.Name, err)
	}
	for {
		var crd struct {
			Status struct {
				Conditions []metav1.Condition `json:"conditions"`
			} `json:"status"`
		}
		raw, err := client.Get().AbsPath(crdPath + head.Name).DoRaw(ctx)
		if err == nil {
			err = json.Unmarshal(raw, &crd)
		}
		if err != nil {
			return fmt.Errorf("install %s: %w", head.Name, err)
		}
		for _, c := range crd.Status.Conditions {
			if c.Type == "Established" && c.Status == metav1.ConditionTrue {
				return nil
			}
		}
		if !pause(ctx, retryPause) {
			return fmt.Errorf("install %s: the cluster does not serve it: %w", head.Name, context.Cause(ctx))
		}
	}
}

// releaseDeployments lets the Deployments of a namespace go whose operator has ended:
// nobody else would remove their finalizers, and the namespace would never go.
func releaseDeployments(ctx context.Context, kube kubernetes.Interface, namespace string) error {
	client := kube.CoreV1().RESTClient()
	path := fmt.Sprintf("/apis/%s/namespaces/%s/deployments", v1alpha1.GroupVersion, namespace)
	// They are deleted first: an operator that lives a moment longer could put the
	// finalizer on again, but not on what is being deleted.
	if _, err := client.Delete().AbsPath(path).DoRaw(ctx); apierrors.IsNotFound(err) {
		return nil // the cluster does not know them
	} else if err != nil {
		return fmt.Errorf("delete the Deployments of namespace %s: %w", namespace, err)
	}
	raw, err := client.Get().AbsPath(path).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("list the Deployments of namespace %s: %w", namespace, err)
	}
	var list struct {
		Items []metav1.PartialObjectMetadata `json:"items"`
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&list); err != nil {
		return fmt.Errorf("list the Deployments of namespace %s: %w", namespace, err)
	}
	var errs []error
	for _, d := range list.Items {
		_, err := client.Patch(types.MergePatchType).AbsPath(path, d.Name).Body([]byte(`{"metadata":{"finalizers":null}}`)).DoRaw(ctx)
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("release Deployment %s/%s: %w", namespace, d.Name, err))
		}
	}
	return errors.Join(errs...)
}

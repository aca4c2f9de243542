package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/operator/device"
)

// retryPause is how often what is missing is looked for again.
const retryPause = 5 * time.Second

// Rule is what the operator must be allowed to do.
type Rule struct {
	Group    string
	Resource string // with "/status" or the like
	Name     string // of the only object; empty: all
	// Namespace is where; empty: for cluster-scoped resources.
	Namespace string
	Verbs     []string
}

// Rules are all that the operator needs: its Devices and their events in the whole
// cluster, Deployments and what belongs to them in namespaces, and in its own the
// Lease of the leader.
func Rules(own string, namespaces []string) []Rule {
	group := v1alpha1.GroupVersion.Group
	rules := []Rule{
		{Resource: "namespaces", Name: own, Verbs: []string{"get"}},
		{Group: group, Resource: "devices", Verbs: []string{"get", "list", "watch", "create", "patch"}},
		{Group: group, Resource: "devices/status", Verbs: []string{"patch"}},
		// Events of objects without a namespace are there.
		{Resource: "events", Namespace: metav1.NamespaceDefault, Verbs: []string{"create", "patch"}},
		{Group: "coordination.k8s.io", Resource: "leases", Namespace: own, Verbs: []string{"get", "create", "update"}},
		{Resource: "events", Namespace: own, Verbs: []string{"create", "patch"}},
	}
	for _, ns := range namespaces {
		rules = append(rules,
			Rule{Group: group, Resource: "deployments", Namespace: ns, Verbs: []string{"get", "list", "watch", "update", "patch"}},
			Rule{Group: group, Resource: "deployments/status", Namespace: ns, Verbs: []string{"update", "patch"}},
			Rule{Group: group, Resource: "deployments/finalizers", Namespace: ns, Verbs: []string{"update"}},
			Rule{Group: "apps", Resource: "controllerrevisions", Namespace: ns, Verbs: []string{"get", "list", "watch", "create", "update", "patch", "delete"}},
			Rule{Resource: "events", Namespace: ns, Verbs: []string{"create", "patch"}},
		)
	}
	return rules
}

func (r Rule) String() string {
	text := "verbs " + strings.Join(r.Verbs, ", ") + " on resource " + r.Resource
	if r.Group != "" {
		text += " of group " + r.Group
	}
	if r.Name != "" {
		text += " named " + r.Name
	}
	if r.Namespace != "" {
		return text + " in namespace " + r.Namespace
	}
	return text + " in the whole cluster"
}

// await returns when everything in the cluster is there that the operator needs, with
// its namespace. ok is false where ctx ended before.
func (op *Operator) await(ctx context.Context) (owner device.Owner, ok bool, err error) {
	kube, err := kubernetes.NewForConfig(op.rest)
	if err != nil {
		return owner, false, fmt.Errorf("kubernetes: %w", err)
	}
	for last := ""; ctx.Err() == nil; {
		owner, err := op.look(ctx, kube)
		if err == nil {
			return owner, true, nil
		}
		op.state.set("%v", err)
		if err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			op.log.Error("not everything is there in Kubernetes; looking again until it is", "error", err)
		}
		op.sleep(ctx, retryPause)
	}
	return owner, false, nil
}

// look looks once, and says all that is missing.
func (op *Operator) look(ctx context.Context, kube kubernetes.Interface) (device.Owner, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := definitions(kube); err != nil {
		return device.Owner{}, err
	}
	if err := allowed(ctx, kube, Rules(op.cfg.Kubernetes.Namespace, op.cfg.Kubernetes.Namespaces)); err != nil {
		return device.Owner{}, err
	}
	ns, err := kube.CoreV1().Namespaces().Get(ctx, op.cfg.Kubernetes.Namespace, metav1.GetOptions{})
	if err != nil {
		return device.Owner{}, fmt.Errorf("the operator's namespace: %w", err)
	}
	return device.Owner{Name: ns.Name, UID: ns.UID}, nil
}

// definitions tells which resource definitions the API server lacks.
func definitions(kube kubernetes.Interface) error {
	version := v1alpha1.GroupVersion
	list, err := kube.Discovery().ServerResourcesForGroupVersion(version.String())
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("ask the API server for its resources: %w", err)
	}
	var missing []string
	for _, resource := range []string{"devices", "deployments"} {
		if list == nil || !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
			missing = append(missing, resource+"."+version.Group)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the API server has no definition of %s in version %s; install them: kubectl apply --server-side -f deploy/crds",
			strings.Join(missing, " and "), version.Version)
	}
	return nil
}

// allowed tells which rules the operator's account lacks.
func allowed(ctx context.Context, kube kubernetes.Interface, rules []Rule) error {
	var missing []string
	for _, r := range rules {
		lacks := Rule{Group: r.Group, Resource: r.Resource, Name: r.Name, Namespace: r.Namespace}
		resource, sub, _ := strings.Cut(r.Resource, "/")
		for _, verb := range r.Verbs {
			review, err := kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Group: r.Group, Resource: resource, Subresource: sub, Name: r.Name, Namespace: r.Namespace, Verb: verb,
				}},
			}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("ask the API server what is allowed: %w", err)
			}
			if !review.Status.Allowed {
				lacks.Verbs = append(lacks.Verbs, verb)
			}
		}
		if len(lacks.Verbs) > 0 {
			missing = append(missing, lacks.String())
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("RBAC does not allow the operator's account all that it needs; missing: %s", strings.Join(missing, "; "))
	}
	return nil
}

package operator

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/kubetest"
	"github.com/harmony-fleet/fleet/internal/operator/config"
	"github.com/harmony-fleet/fleet/internal/operator/fleettest"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

const patience = 30 * time.Second

// account is the user that the operator of a namespace is to the API server.
func account(ns string) string { return "operator-of-" + ns }

// grant allows the operator's account the rules, and nothing else.
func grant(t testing.TB, c client.Client, ns string, rules []Rule) {
	t.Helper()
	create := func(o client.Object) {
		t.Helper()
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	in := map[string][]rbacv1.PolicyRule{}
	for _, r := range rules {
		in[r.Namespace] = append(in[r.Namespace], policy(r))
	}
	subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: account(ns)}}
	for namespace, rules := range in {
		meta := metav1.ObjectMeta{Name: account(ns), Namespace: namespace}
		if namespace == "" {
			create(&rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules})
			create(&rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name}})
			continue
		}
		create(&rbacv1.Role{ObjectMeta: meta, Rules: rules})
		create(&rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name}})
	}
}

// running is an operator that runs until it is stopped, or the test ends.
type running struct {
	*Operator
	stop func()
}

// start runs an operator of the namespace ns, as an account that may do what was
// granted.
func start(t testing.TB, kube *kubetest.Server, b *fleettest.Broker, ns string, o mirror.Options) *running {
	t.Helper()
	return startWith(t, kube.Config(), b, ns, o)
}

func startWith(t testing.TB, restConfig *rest.Config, b *fleettest.Broker, ns string, o mirror.Options) *running {
	t.Helper()
	user, password := b.DataLogin()
	yes := true
	cfg := config.Config{
		NATS:        config.NATS{URL: []string{b.URL()}},
		Credentials: credentials.Config{Type: credentials.TypeShared, User: user, Password: password},
		Kubernetes:  config.Kubernetes{Namespace: ns, Namespaces: []string{ns}, LeaderElection: &yes},
		Metrics:     config.Listener{Listen: "127.0.0.1:0"}, Health: config.Listener{Listen: "127.0.0.1:0"},
	}
	restConfig.Impersonate = rest.ImpersonationConfig{UserName: account(ns)}
	op, err := New(Options{Config: cfg, Rest: restConfig, Mirror: o, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- op.Run(ctx) }()
	stopped := false
	r := &running{op, func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the operator ended with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("the operator does not end")
		}
	}}
	t.Cleanup(r.stop)
	return r
}

// get is the body of an answer of the operator's own server, with its status before it.
func (r *running) get(t testing.TB, what, path string) string {
	t.Helper()
	addr := r.state.addr(what)
	if addr == "" {
		return ""
	}
	httpClient := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := httpClient.Get("http://" + addr + path)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return response.Status + "\n" + string(body)
}

func (r *running) awaitReadyz(t *testing.T, want string) {
	t.Helper()
	testwait.For(t, patience, "/readyz to say "+want, func() bool { return strings.Contains(r.get(t, "health", "/readyz"), want) })
}

// awaitDevice waits until the object is as ok has it.
func awaitDevice(t *testing.T, c client.Client, id, what string, ok func(*v1alpha1.Device) bool) *v1alpha1.Device {
	t.Helper()
	d := &v1alpha1.Device{}
	testwait.For(t, patience, "device "+id+" "+what, func() bool {
		d = &v1alpha1.Device{}
		err := c.Get(t.Context(), client.ObjectKey{Name: id}, d)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		return err == nil && ok(d)
	})
	return d
}

// clusterRole replaces what the account may do in the whole cluster.
func clusterRole(t *testing.T, c client.Client, ns string, rules []Rule) {
	t.Helper()
	role := &rbacv1.ClusterRole{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: account(ns)}, role); err != nil {
		t.Fatal(err)
	}
	role.Rules = nil
	for _, r := range rules {
		if r.Namespace == "" {
			role.Rules = append(role.Rules, policy(r))
		}
	}
	if err := c.Update(t.Context(), role); err != nil {
		t.Fatal(err)
	}
}

func policy(r Rule) rbacv1.PolicyRule {
	p := rbacv1.PolicyRule{APIGroups: []string{r.Group}, Resources: []string{r.Resource}, Verbs: r.Verbs}
	if r.Name != "" {
		p.ResourceNames = []string{r.Name}
	}
	return p
}

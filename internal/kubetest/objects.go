package kubetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/deploy/crds"
)

// Scheme knows Kubernetes' own types, the fleet's and resource definitions.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // two types of one name, in code
		}
	}
	return s
}

// Client is an uncached client of the administrator; it goes with the test.
func (s *Server) Client(tb testing.TB) client.Client {
	tb.Helper()
	return clientOf(tb, s.Config())
}

// ClientAs is one of another user, who may do what RBAC allows.
func (s *Server) ClientAs(tb testing.TB, user string) client.Client {
	tb.Helper()
	config := s.Config()
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	return clientOf(tb, config)
}

func clientOf(tb testing.TB, config *rest.Config) client.Client {
	tb.Helper()
	c, done, err := newClient(config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(done)
	return c
}

func newClient(config *rest.Config) (client.Client, func(), error) {
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, nil, err
	}
	c, err := client.New(config, client.Options{HTTPClient: http, Scheme: Scheme()})
	return c, http.CloseIdleConnections, err
}

// Namespace makes a namespace for a test. It stays, and is of no use to another.
func (s *Server) Namespace(tb testing.TB) string {
	tb.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "test-" + strings.ToLower(rand.Text()[:8])}}
	if err := s.Client(tb).Create(tb.Context(), ns); err != nil {
		tb.Fatal(err)
	}
	return ns.Name
}

// InstallCRDs installs the fleet's definitions and returns when they can be used.
func (s *Server) InstallCRDs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, done, err := newClient(s.Config())
	if err != nil {
		return fmt.Errorf("kubetest: %w", err)
	}
	defer done()
	files, err := fs.Glob(crds.Files, "*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("kubetest: no resource definitions: %v", err)
	}
	for _, file := range files {
		if err := installCRD(ctx, c, file); err != nil {
			return fmt.Errorf("kubetest: %s: %w", file, err)
		}
	}
	return nil
}

func installCRD(ctx context.Context, c client.Client, file string) error {
	content, err := crds.Files.ReadFile(file)
	if err != nil {
		return err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(content, crd); err != nil {
		return err
	}
	if err := c.Create(ctx, crd); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.Get(ctx, client.ObjectKeyFromObject(crd), crd); err != nil {
			return err
		}
		for _, condition := range crd.Status.Conditions {
			if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
			if condition.Type == apiextensionsv1.NonStructuralSchema && condition.Status == apiextensionsv1.ConditionTrue {
				return fmt.Errorf("the schema is not structural: %s", condition.Message)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not established: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

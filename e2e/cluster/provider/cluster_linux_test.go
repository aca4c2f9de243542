package provider

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	containerregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/harmony-fleet/fleet/e2e/cluster/internal/testslot"
	"github.com/harmony-fleet/fleet/e2e/cluster/local"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func localOptions() local.Options {
	slot := testslot.Take()
	return local.Options{Dir: slot.Dir, Name: slot.Name, Network: slot.Network, Progress: os.Stderr}
}

// startRegistry serves a registry at the address by which a node of the network
// reaches this machine, and counts what is written and read.
func startRegistry(t *testing.T) (host string, puts, gets *atomic.Int64) {
	t.Helper()
	// All addresses, since the one that is meant comes with the cluster.
	listener, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	puts, gets = new(atomic.Int64), new(atomic.Int64)
	handler := containerregistry.New(containerregistry.Logger(log.New(io.Discard, "", 0)))
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut:
			puts.Add(1)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			gets.Add(1)
		}
		handler.ServeHTTP(w, r)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		remote.DefaultTransport.(*http.Transport).CloseIdleConnections() // those that pushed
	})
	address := localOptions().Network.Addr().Next().String()
	return fmt.Sprintf("%s:%d", address, listener.Addr().(*net.TCPAddr).Port), puts, gets
}

// TestPodsPullFromARegistry runs a real cluster with the local provider, and then
// uses it as one that somebody else runs: by its kubeconfig and a registry.
func TestPodsPullFromARegistry(t *testing.T) {
	if os.Getenv("HARMONY_FLEET_E2E") != "1" {
		t.Skip("needs root, containerd and some minutes: set HARMONY_FLEET_E2E=1")
	}
	t.Cleanup(testslot.Release)
	host, puts, gets := startRegistry(t)
	prefix := host + "/team"
	here, err := Select(t.Context(), Options{Kind: Local, Registry: prefix, Local: localOptions()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := local.New(localOptions()).Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	up, err := here.Up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.Build(t.Context(), image.Options{Host: prefix}, image.Program{Name: "probe", Package: "../local/testdata/probe"})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", up.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, done, err := kubeapi.Client(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)

	elsewhere, err := Select(t.Context(), Options{Kind: Auto, Kubeconfig: up.Kubeconfig(), Registry: prefix})
	if err != nil || elsewhere.Name() != Kubeconfig {
		t.Fatalf("got %v, %v", elsewhere, err)
	}
	existing, err := elsewhere.Up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := existing.NodeAddresses(), up.NodeAddresses(); len(got) != 1 || got[0] != want[0] {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if err := existing.LoadImages(t.Context(), images[0]); err != nil {
		t.Fatal(err)
	}
	written := puts.Load()
	if written == 0 {
		t.Error("nothing was pushed")
	}
	if err := existing.LoadImages(t.Context(), images[0]); err != nil || puts.Load() != written {
		t.Errorf("pushing again wrote %d times, %v", puts.Load()-written, err)
	}
	if gets.Load() != 0 {
		t.Error("somebody has pulled already")
	}
	if _, err := client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers:    []corev1.Container{{Name: "probe", Image: images[0].Ref(), Args: []string{"pulled"}}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var phase corev1.PodPhase
	testwait.For(t, 30*time.Second, "the Pod has run", func() bool {
		pod, err := client.CoreV1().Pods("default").Get(t.Context(), "probe", metav1.GetOptions{})
		if err == nil {
			phase = pod.Status.Phase
		}
		return phase == corev1.PodSucceeded
	})
	output, err := client.CoreV1().Pods("default").GetLogs("probe", &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || string(output) != "pulled\n" {
		t.Errorf("got %q, %v", output, err)
	}
	if gets.Load() == 0 {
		t.Error("nobody has pulled")
	}

	t.Run("image of another registry", func(t *testing.T) {
		other, err := image.Build(t.Context(), image.Options{}, image.Program{Name: "probe", Package: "../local/testdata/probe"})
		if err != nil {
			t.Fatal(err)
		}
		if err := existing.LoadImages(t.Context(), other[0]); err == nil || !strings.Contains(err.Error(), "build it with image.Options{Host: ") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no registry", func(t *testing.T) {
		p, err := Select(t.Context(), Options{Kind: Kubeconfig, Kubeconfig: up.Kubeconfig()})
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.Up(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.LoadImages(t.Context(), images[0]); err == nil || !strings.Contains(err.Error(), "name a registry") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a user without rights", func(t *testing.T) {
		path := userConfig(t, client, up.Kubeconfig(), nil)
		p, err := Select(t.Context(), Options{Kind: Kubeconfig, Kubeconfig: path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Up(t.Context()); err == nil || !strings.Contains(err.Error(), "does not let this user create namespaces") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a user who may make namespaces and not see nodes", func(t *testing.T) {
		path := userConfig(t, client, up.Kubeconfig(), []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"create", "get", "list", "delete"}}})
		p, err := Select(t.Context(), Options{Kind: Kubeconfig, Kubeconfig: path})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := p.Up(t.Context()); err != nil || len(c.NodeAddresses()) != 0 {
			t.Errorf("got %v, %v", c, err)
		}
	})
}

// userConfig makes a user with the given rights and returns the path of their
// kubeconfig.
func userConfig(t *testing.T, client kubernetes.Interface, admin string, rights []rbacv1.PolicyRule) string {
	t.Helper()
	user, err := client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "user-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Name: user.Name}
	if _, err := client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rights}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: user.Name}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(admin)
	if err != nil {
		t.Fatal(err)
	}
	request, err := client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), user.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := request.Status.Token
	for _, auth := range config.AuthInfos {
		auth.ClientCertificateData, auth.ClientKeyData, auth.Token = nil, nil, token
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

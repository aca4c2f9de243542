package e2e

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/e2e/cluster/provider"
)

// TestClusterOfSomebodyElseWithARegistry uses the cluster as a stranger's: all that is
// known of it is a kubeconfig, and images come to it by a registry.
func TestClusterOfSomebodyElseWithARegistry(t *testing.T) {
	_, c := kubeOf(t)
	node, err := netip.ParseAddr(c.NodeAddresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	// The node's gateway is this machine.
	gateway := netip.PrefixFrom(node, 24).Masked().Addr().Next().String()
	listener, err := net.Listen("tcp4", net.JoinHostPort(gateway, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	if err := server.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	server.Listener = listener
	server.Start()
	t.Cleanup(func() {
		server.Close()
		remote.DefaultTransport.(*http.Transport).CloseIdleConnections() // those that pushed
	})
	team := net.JoinHostPort(gateway, strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)) + "/team"

	// The cluster is told that this registry speaks plain HTTP.
	local, err := provider.Select(t.Context(), provider.Options{Kind: provider.Local, Registry: team})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.Up(t.Context()); err != nil {
		t.Fatal(err)
	}

	s := New(t, Options{Cluster: provider.Kubeconfig, Kubeconfig: c.Kubeconfig(), Registry: team})
	pingAll(t, s)
	pods, err := s.kube.CoreV1().Pods(s.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		for _, container := range pod.Spec.Containers {
			if !strings.HasPrefix(container.Image, team+"/") {
				t.Errorf("Pod %s runs %s, which is not of the registry %s", pod.Name, container.Image, team)
			}
		}
	}
}

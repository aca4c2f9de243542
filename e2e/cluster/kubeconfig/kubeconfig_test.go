package kubeconfig

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config writes a kubeconfig for a server and returns its path.
func config(t *testing.T, server string) string {
	t.Helper()
	return file(t, fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
`, server))
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// apiServer answers access reviews and the list of nodes as told.
func apiServer(t *testing.T, mayMake bool, nodes string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":%v}}`, mayMake)
		case "/api/v1/nodes":
			if nodes == "forbidden" {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
				return
			}
			fmt.Fprintf(w, `{"kind":"NodeList","apiVersion":"v1","items":[%s]}`, nodes)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// refusing is the address of a server that refuses every request with that status.
func refusing(t *testing.T, status int) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":%d}`, status)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// silent is the address of a server that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return "https://" + listener.Addr().String()
}

const (
	readyNode  = `{"metadata":{"name":"n1"},"status":{"conditions":[{"type":"Ready","status":"True"}],"addresses":[{"type":"InternalIP","address":"127.0.0.1"},{"type":"ExternalIP","address":"127.0.0.2"},{"type":"Hostname","address":"n1"}]}}`
	deadNode   = `{"metadata":{"name":"n2"},"status":{"conditions":[{"type":"Ready","status":"False","message":"the network is not there"}]}}`
	masterNode = `{"metadata":{"name":"n3"},"spec":{"taints":[{"key":"node-role.kubernetes.io/control-plane","effect":"NoSchedule"}]},"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
)

func TestUpSaysWhatIsWrong(t *testing.T) {
	const brokenContext = "apiVersion: v1\nkind: Config\ncurrent-context: gone\n"
	for _, c := range []struct{ name, path, want string }{
		{"no file", "/nowhere/config", "kubeconfig /nowhere/config does not exist: name the file of a cluster you have"},
		{"a directory", t.TempDir(), "cannot be read"},
		{"no YAML", file(t, "{{{"), "cannot be read"},
		{"empty", file(t, ""), "has no current context: choose one with: kubectl --kubeconfig"},
		{"unknown context", file(t, brokenContext), `names the context "gone" and does not have it`},
		{"several files", "/a/config:/b/config", "are 2 files: make one of them with: KUBECONFIG=/a/config:/b/config kubectl config view --flatten"},
		{"nobody listens", config(t, "https://127.0.0.1:1"), "the cluster at https://127.0.0.1:1 does not answer: dial tcp 127.0.0.1:1: connect: connection refused: is it up"},
		{"nobody answers", config(t, silent(t)), "does not answer"},
		{"no Kubernetes", config(t, refusing(t, http.StatusTeapot)), "the cluster at http://127.0.0.1"},
		{"credentials are refused", config(t, refusing(t, http.StatusUnauthorized)), "refuses these credentials: log in to it again"},
		{"no right to make namespaces", config(t, apiServer(t, false, readyNode)), "does not let this user create namespaces, and every test has one of its own: ask its administrator"},
		{"no nodes", config(t, apiServer(t, true, "")), "takes no Pods: it has no nodes"},
		{"node is not ready", config(t, apiServer(t, true, deadNode)), "takes no Pods: node n2 is not ready: the network is not there"},
		{"node is tainted", config(t, apiServer(t, true, masterNode)), "takes no Pods: node n3 is tainted node-role.kubernetes.io/control-plane"},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			_, err := New(Options{Path: c.path, Timeout: time.Second}).Up(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestUnreadableFileIsRefused(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("root reads every file: the file is made a link to itself instead")
		path := filepath.Join(t.TempDir(), "config")
		if err := os.Symlink(path, path); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{Path: path}).Up(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("got %v", err)
		}
		return
	}
	path := file(t, "")
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Path: path}).Up(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be read by you") {
		t.Errorf("got %v", err)
	}
}

func TestClusterIsTakenAsItIs(t *testing.T) {
	for _, c := range []struct {
		name, nodes string
		addresses   []string
	}{
		{"nodes with addresses", strings.Join([]string{deadNode, masterNode, readyNode}, ","), []string{"127.0.0.2", "127.0.0.1"}},
		{"nodes may not be listed", "forbidden", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := config(t, apiServer(t, true, c.nodes))
			cluster, err := New(Options{Path: path}).Up(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if cluster.Kubeconfig() != path {
				t.Errorf("kubeconfig %s", cluster.Kubeconfig())
			}
			if got := cluster.NodeAddresses(); !slices.Equal(got, c.addresses) {
				t.Errorf("addresses %v, want %v", got, c.addresses)
			}
			if err := cluster.Down(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("after down: %v", err)
			}
		})
	}
}

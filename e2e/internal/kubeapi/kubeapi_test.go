package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

// What a real API server answers is tested with the providers; these are its answers
// that a cluster gives in trouble only, and what needs none.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func writeConfig(t *testing.T, context, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %q
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
`, context, server)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKubeconfigThatCannotBeUsedIsNamed(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ path, want string }{
		"missing":            {filepath.Join(t.TempDir(), "none"), "does not exist: name the file"},
		"no kubeconfig":      {garbage, "cannot be read: "},
		"no current context": {writeConfig(t, "", "http://127.0.0.1:1"), "has no current context: choose one with"},
		"unknown context":    {writeConfig(t, "other", "http://127.0.0.1:1"), `names the context "other" and does not have it`},
		"no address":         {writeConfig(t, "c", "http://127.0.0.1:port"), "cannot be used"},
	} {
		t.Run(name, func(t *testing.T) {
			api, err := Open(test.path)
			if err == nil {
				api.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.path) {
				t.Errorf("got %v, want %q and the path", err, test.want)
			}
		})
	}
}

// serve opens an API whose server answers every request by answer.
func serve(t *testing.T, answer http.HandlerFunc) *API {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	api, err := Open(writeConfig(t, "c", server.URL))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	return api
}

func failing(code int, reason metav1.StatusReason) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"credentials":  {failing(http.StatusUnauthorized, metav1.StatusReasonUnauthorized), "refuses these credentials: log in to it again"},
		"server error": {failing(http.StatusInternalServerError, metav1.StatusReasonInternalError), "the cluster at http://127.0.0.1:"},
		"cut short":    {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "does not answer: "},
		"not allowed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":false}}`)
		}, "does not let this user create namespaces"},
	} {
		t.Run(name, func(t *testing.T) {
			err := serve(t, test.answer).MayMakeNamespaces(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestNodesAreWaitedFor(t *testing.T) {
	node := func(ready string) string {
		return `{"metadata":{"name":"n1"},"status":{"conditions":[{"type":"Ready","status":"` + ready + `","message":"CNI is missing"}]}}`
	}
	list := func(w http.ResponseWriter, items string) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"NodeList","apiVersion":"v1","items":[%s]}`, items)
	}
	t.Run("until one is ready", func(t *testing.T) {
		var asked atomic.Int64
		api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			switch asked.Add(1) {
			case 1:
				list(w, "")
			case 2:
				list(w, node("False"))
			default:
				list(w, node("True"))
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if nodes, err := api.AwaitNodes(ctx); err != nil || len(nodes) != 1 || asked.Load() != 3 {
			t.Errorf("%d nodes after %d questions, %v", len(nodes), asked.Load(), err)
		}
	})
	t.Run("no longer than ctx", func(t *testing.T) {
		looked := make(chan struct{}, 1)
		api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			list(w, node("False"))
			select {
			case looked <- struct{}{}:
			default:
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		go func() { // once it has looked
			<-looked
			<-looked
			cancel()
		}()
		_, err := api.AwaitNodes(ctx)
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "node n1 is not ready: CNI is missing") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("but not by who may not see them", func(t *testing.T) {
		if nodes, err := serve(t, failing(http.StatusForbidden, metav1.StatusReasonForbidden)).AwaitNodes(t.Context()); err != nil || nodes != nil {
			t.Errorf("%v, %v", nodes, err)
		}
	})
}

func TestWhichNodesTakePods(t *testing.T) {
	ready := corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}
	tainted := func(effect corev1.TaintEffect) corev1.NodeSpec {
		return corev1.NodeSpec{Taints: []corev1.Taint{{Key: "gpu", Effect: effect}}}
	}
	for name, test := range map[string]struct {
		node corev1.Node
		want string // empty: it does
	}{
		"ready":           {corev1.Node{Status: ready}, ""},
		"rather not":      {corev1.Node{Spec: tainted(corev1.TaintEffectPreferNoSchedule), Status: ready}, ""},
		"tainted":         {corev1.Node{Spec: tainted(corev1.TaintEffectNoSchedule), Status: ready}, "is tainted gpu"},
		"cordoned":        {corev1.Node{Spec: corev1.NodeSpec{Unschedulable: true}, Status: ready}, "is cordoned"},
		"silent":          {corev1.Node{}, "has not said yet"},
		"not ready":       {corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Message: "no CNI"}}}}, "is not ready: no CNI"},
		"another's state": {corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue}}}}, "has not said yet"},
	} {
		test.node.Name = "n1"
		err := Schedulable(&test.node)
		if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "n1")) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

func TestAddressesForOthersComeFirst(t *testing.T) {
	nodes := []corev1.Node{
		{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeHostName, Address: "n1"}}}},
		{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.2"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.2"}}}},
	}
	if got := Addresses(nodes); !slices.Equal(got, []string{"203.0.113.2", "10.0.0.1", "10.0.0.2"}) {
		t.Errorf("got %v", got)
	}
}

// A refusal says as well that the address is reached; 127.0.0.1 gives one, or has a
// kubelet. Nothing is asked of an address once ctx is done.
func TestReachableAddresses(t *testing.T) {
	if got := Reachable(t.Context(), []string{"127.0.0.1", "not an address"}); !slices.Equal(got, []string{"127.0.0.1"}) {
		t.Errorf("got %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Reachable(ctx, []string{"127.0.0.1"}); len(got) != 0 {
		t.Errorf("got %v after the end", got)
	}
}

// Connections end with the client: those that wait for an answer too, and none is made
// after it.
func TestNoConnectionOutlivesItsClient(t *testing.T) {
	var open atomic.Int64
	asked, answer := make(chan struct{}), make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-answer:
		case <-r.Context().Done():
		}
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(answer) })
	client, done, err := Client(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error { // once: by default a request is tried again for ten seconds
		return client.CoreV1().RESTClient().Get().AbsPath("/version").MaxRetries(0).Do(t.Context()).Error()
	}
	failed := make(chan error, 1)
	go func() { failed <- ask() }()
	select {
	case <-asked:
	case <-time.After(patience):
		t.Fatal("nothing was asked")
	}
	done()
	done() // more than once is no fault
	select {
	case err := <-failed:
		if err == nil {
			t.Error("there was an answer")
		}
	case <-time.After(patience):
		t.Fatal("the request goes on")
	}
	testwait.For(t, patience, "the end of the connection", func() bool { return open.Load() == 0 })
	if err := ask(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

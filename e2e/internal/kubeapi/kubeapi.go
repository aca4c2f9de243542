// Package kubeapi asks a cluster that somebody else runs what the harness must know
// before it works there: whether it answers, what it allows, which nodes take Pods
// and where NodePorts can be reached.
//
//	api, err := kubeapi.Open(path)
//	if err != nil { … }
//	defer api.Close()
//	err = api.MayMakeNamespaces(ctx)
//	nodes, err := api.AwaitNodes(ctx)
//	addresses := kubeapi.Reachable(ctx, kubeapi.Addresses(nodes))
//
// Its errors name the cluster's address and say what to do.
package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// requestTimeout bounds one request, so that an address where nobody answers is
// noticed well before a test's patience ends.
const requestTimeout = 10 * time.Second

// API is a connection to the API server of a cluster.
type API struct {
	client kubernetes.Interface
	close  func()
	server string // for messages
}

// Close ends the connections.
func (a *API) Close() { a.close() }

// Open reads the kubeconfig file of that path. It sends nothing.
func Open(path string) (*API, error) {
	config, err := clientcmd.LoadFromFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("kubeconfig %s does not exist: name the file of a cluster you have, with --kubeconfig or KUBECONFIG", path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("kubeconfig %s cannot be read by you: name a file of your own, or run this as its owner", path)
	case err != nil:
		return nil, fmt.Errorf("kubeconfig %s cannot be read: %w: fetch it again, or name another", path, err)
	}
	switch _, known := config.Contexts[config.CurrentContext]; {
	case config.CurrentContext == "":
		return nil, fmt.Errorf("kubeconfig %s has no current context: choose one with: kubectl --kubeconfig %[1]s config use-context NAME", path)
	case !known:
		return nil, fmt.Errorf("kubeconfig %s names the context %q and does not have it: choose one it has with: kubectl --kubeconfig %[1]s config use-context NAME", path, config.CurrentContext)
	}
	access, err := clientcmd.NewNonInteractiveClientConfig(*config, config.CurrentContext, nil, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s cannot be used: %w: fetch it again, or name another", path, err)
	}
	access.Timeout = requestTimeout
	access.QPS = -1 // no limit: a look that waits for its turn ends with another error than the cluster's
	client, done, err := Client(access)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s cannot be used: %w: fetch it again, or name another", path, err)
	}
	return &API{client: client, close: done, server: access.Host}, nil
}

// Client returns a client, and what ends its connections, which otherwise stay open,
// each with goroutines, also when the cluster is no more. config is given a Dial of
// its own, so that done ends the connections of other clients made from it as well.
func Client(config *rest.Config) (client kubernetes.Interface, done func(), err error) {
	open := &dialed{conns: map[net.Conn]bool{}}
	config.Dial = open.dial
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, nil, err
	}
	client, err = kubernetes.NewForConfigAndClient(config, http)
	if err != nil {
		return nil, nil, err
	}
	return client, open.close, nil
}

// explain says what a failed request means.
func (a *API) explain(err error) error {
	var network *url.Error
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the cluster at %s refuses these credentials: log in to it again", a.server)
	case errors.As(err, &network):
		return fmt.Errorf("the cluster at %s does not answer: %w: is it up, and does this machine reach it", a.server, network.Err)
	}
	return fmt.Errorf("the cluster at %s: %w", a.server, err)
}

// MayMakeNamespaces returns nil where the user may make namespaces and delete them.
// The API server is asked, and nothing tried.
func (a *API) MayMakeNamespaces(ctx context.Context) error {
	for _, verb := range []string{"create", "delete"} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: "namespaces"},
		}}
		review, err := a.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return a.explain(err)
		}
		if !review.Status.Allowed {
			return fmt.Errorf("the cluster at %s does not let this user %s namespaces, and every test has one of its own: "+
				"ask its administrator for that right (a ClusterRole with create, get, list and delete on namespaces), or use another cluster", a.server, verb)
		}
	}
	return nil
}

// AwaitNodes waits until a node is Ready and takes Pods, or ctx is done, and returns
// all nodes. Where the user may not list nodes it returns none and no error.
func (a *API) AwaitNodes(ctx context.Context) ([]corev1.Node, error) {
	var waiting error // what was in the way at the last look
	for {
		list, err := a.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if apierrors.IsForbidden(err) {
			return nil, nil
		}
		if err != nil && ctx.Err() == nil {
			return nil, a.explain(err)
		}
		if err == nil {
			if waiting = ready(list.Items); waiting == nil {
				return list.Items, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the cluster at %s takes no Pods: %w: look with: kubectl describe nodes", a.server, errors.Join(waiting, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ready returns nil when a node is Ready and takes Pods.
func ready(nodes []corev1.Node) error {
	why := errors.New("it has no nodes")
	for _, n := range nodes {
		if why = Schedulable(&n); why == nil {
			return nil
		}
	}
	return why
}

// Schedulable returns nil when the node is Ready and takes Pods without
// tolerations.
func Schedulable(n *corev1.Node) error {
	if n.Spec.Unschedulable {
		return fmt.Errorf("node %s is cordoned", n.Name)
	}
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			return fmt.Errorf("node %s is tainted %s", n.Name, t.Key)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return nil
		}
		return fmt.Errorf("node %s is not ready: %s", n.Name, c.Message)
	}
	return fmt.Errorf("node %s has not said yet whether it is ready", n.Name)
}

// Addresses are the nodes' addresses, those that are meant for others first.
func Addresses(nodes []corev1.Node) []string {
	var external, internal []string
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			switch a.Type {
			case corev1.NodeExternalIP:
				external = append(external, a.Address)
			case corev1.NodeInternalIP:
				internal = append(internal, a.Address)
			}
		}
	}
	return append(external, internal...)
}

// kubeletPort is where something listens on every node; that it refuses says as
// well that the node is reached.
const kubeletPort = "10250"

// reachTimeout bounds the look at one address.
const reachTimeout = 2 * time.Second

// Reachable returns those of the addresses that answer this machine, in the same
// order. It looks at all of them at once, for at most 2 s.
func Reachable(ctx context.Context, addresses []string) []string {
	answers := make([]bool, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			dialer := net.Dialer{Timeout: reachTimeout}
			conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(address, kubeletPort))
			if err == nil {
				conn.Close()
			}
			answers[i] = err == nil || errors.Is(err, syscall.ECONNREFUSED)
		})
	}
	wg.Wait()
	var reached []string
	for i, address := range addresses {
		if answers[i] {
			reached = append(reached, address)
		}
	}
	return reached
}

package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
)

// lookEvery is the pause between two looks at something that is not there yet.
const lookEvery = 15 * time.Millisecond

// errSupervisorEnded says that waiting for the cluster is in vain.
var errSupervisorEnded = errors.New("its supervisor has ended")

// aliveEvery is the pause between two looks at the supervisor.
const aliveEvery = 50 * time.Millisecond

// awaitReady returns when the node is Ready and takes Pods, Pods can be made in the
// default namespace, and names are resolved. It makes the Service for the last. It
// returns errSupervisorEnded as soon as that is so.
func (c *Cluster) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(aliveEvery):
			}
			if living, err := alive(c.layout); err == nil && !living {
				cancel(errSupervisorEnded)
			}
		}
	}()
	err := c.awaitConditions(ctx)
	ended := errors.Is(context.Cause(ctx), errSupervisorEnded)
	cancel(nil)
	<-watched
	if ended {
		return errSupervisorEnded
	}
	return err
}

func (c *Cluster) awaitConditions(ctx context.Context) error {
	client, done, err := c.client()
	if err != nil {
		return err
	}
	defer done()
	authority, err := os.ReadFile(c.layout.path("pki", "ca.crt"))
	if err != nil {
		return err
	}
	conditions := []struct {
		what string
		look func(context.Context) error
	}{
		{"node ready", func(ctx context.Context) error { return nodeReady(ctx, client, c.options.Name) }},
		{"Service of cluster DNS made", func(ctx context.Context) error { return makeDNS(ctx, client, c.addresses) }},
		{"cluster DNS ready", func(ctx context.Context) error { return dnsReady(ctx, c.addresses) }},
		{"default service account made", func(ctx context.Context) error { return makeDefaults(ctx, client, authority) }},
	}
	begin := time.Now()
	errs := make([]error, len(conditions))
	var wg sync.WaitGroup
	for i, condition := range conditions {
		wg.Go(func() {
			errs[i] = until(ctx, condition.look)
			c.options.Logger.Debug(condition.what, "after", time.Since(begin), "error", errs[i])
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// until repeats condition until it returns nil, or ctx is done; then it returns
// what condition said last.
func until(ctx context.Context, condition func(context.Context) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := condition(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(lookEvery):
		}
	}
}

// look returns the version of the cluster if its node is ready.
func (c *Cluster) look(ctx context.Context) (version string, err error) {
	client, done, err := c.client()
	if err != nil {
		return "", err
	}
	defer done()
	if err := nodeReady(ctx, client, c.options.Name); err != nil {
		return "", err
	}
	info, err := client.Discovery().ServerVersion()
	if err != nil {
		return "", err
	}
	return info.GitVersion, nil
}

// client returns a client, and what ends its connections.
func (c *Cluster) client() (client kubernetes.Interface, done func(), err error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS = -1 // no limit
	return kubeapi.Client(config)
}

// nodeReady returns nil when the node takes Pods.
func nodeReady(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return kubeapi.Schedulable(node)
}

// makeDefaults makes what Pods in the default namespace need: the controllers do so
// in every namespace, but not before 2 s after the node is ready.
func makeDefaults(ctx context.Context, client kubernetes.Interface, authority []byte) error {
	_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
	}, metav1.CreateOptions{})
	if err := created(err); err != nil {
		return fmt.Errorf("make default service account: %w", err)
	}
	_, err = client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"},
		Data:       map[string]string{"ca.crt": string(authority)},
	}, metav1.CreateOptions{})
	if err := created(err); err != nil {
		return fmt.Errorf("publish certificate of the API server: %w", err)
	}
	return nil
}

// makeDNS makes what ordinary manifests expect of cluster DNS: the kube-dns Service.
// It has no selector; its one endpoint is the server that runs on the node.
func makeDNS(ctx context.Context, client kubernetes.Interface, at addresses) error {
	const namespace, service = metav1.NamespaceSystem, "kube-dns"
	// Looked for first: making a Service again fails because its address is taken,
	// not because its name is.
	_, err := client.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err == nil {
		_, err = client.DiscoveryV1().EndpointSlices(namespace).Get(ctx, service, metav1.GetOptions{})
		if err == nil {
			return nil
		}
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for Service of cluster DNS: %w", err)
	}
	_, err = client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: service, Labels: map[string]string{"k8s-app": service, "kubernetes.io/name": "CoreDNS"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: at.DNS.String(),
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
			},
		},
	}, metav1.CreateOptions{})
	if err := created(err); err != nil {
		return fmt.Errorf("make Service of cluster DNS: %w", err)
	}
	port := func(name string, protocol corev1.Protocol) discoveryv1.EndpointPort {
		number := int32(53)
		return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number}
	}
	ready := true
	_, err = client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: service, Labels: map[string]string{
			discoveryv1.LabelServiceName: service,
			discoveryv1.LabelManagedBy:   "harmony-fleet",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{at.Node.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
	}, metav1.CreateOptions{})
	if err := created(err); err != nil {
		return fmt.Errorf("make endpoint of cluster DNS: %w", err)
	}
	return nil
}

// created returns nil if the object is there, whoever made it. A Service that is
// there already is reported by its address, which is checked before its name.
func created(err error) error {
	if apierrors.IsAlreadyExists(err) || apierrors.IsInvalid(err) && strings.Contains(err.Error(), "already allocated") {
		return nil
	}
	return err
}

// dnsReady returns nil when cluster DNS knows the cluster's names.
func dnsReady(ctx context.Context, at addresses) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/ready", at.Node, dnsReadyPort), nil)
	if err != nil {
		return err
	}
	request.Close = true // it would stay open when the cluster is no more
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("cluster DNS: %w", err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("cluster DNS is not ready: %s", response.Status)
	}
	return nil
}

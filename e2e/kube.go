package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeClient is a client of the cluster that does not hold back: a stack is some
// dozens of objects, made at once.
type kubeClient struct {
	kubernetes.Interface
	config *rest.Config
	dialed *dialed
}

func newKubeClient(kubeconfig string) (*kubeClient, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	config.QPS, config.Burst = -1, -1
	config.UserAgent = "harmony-fleet-e2e"
	open := &dialed{conns: map[net.Conn]bool{}}
	config.Dial = open.dial
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	set, err := kubernetes.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return &kubeClient{Interface: set, config: config, dialed: open}, nil
}

func (k *kubeClient) close() { k.dialed.close() }

// dialed are the connections of a client, so that none outlives it: closing those that
// are idle would miss one whose last answer has just been read.
type dialed struct {
	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

// dialedConn is a connection that is off the list once it is closed.
type dialedConn struct {
	net.Conn
	of *dialed
}

func (d *dialed) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout * 10}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	d.conns[conn] = true
	return dialedConn{conn, d}, nil
}

func (c dialedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c.Conn)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (d *dialed) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for conn := range d.conns {
		_ = conn.Close() // it is not used any more
	}
}

// explain says where a cluster does not answer at all.
func (k *kubeClient) explain(err error) error {
	var status apierrors.APIStatus
	var urlErr *url.Error
	if errors.As(err, &status) || !errors.As(err, &urlErr) {
		return err
	}
	return fmt.Errorf("the cluster's API server at %s does not answer: is the cluster up, and is the kubeconfig right? %w", k.config.Host, err)
}

func natsURL(host string, port int32) string {
	return "tls://" + net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// retryPause is the time between two attempts at what is expected to work soon.
const retryPause = 10 * time.Millisecond

// pause waits; it is false where ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

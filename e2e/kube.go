package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
)

// kubeClient is a client of the cluster that does not hold back: a stack is some
// dozens of objects, made at once.
type kubeClient struct {
	kubernetes.Interface
	config *rest.Config
	close  func() // ends its connections, and those of what else is made from config
}

func newKubeClient(kubeconfig string) (*kubeClient, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	config.QPS, config.Burst = -1, -1
	config.UserAgent = "harmony-fleet-e2e"
	client, done, err := kubeapi.Client(config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return &kubeClient{Interface: client, config: config, close: done}, nil
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

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	streamspdy "k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

const (
	// nodePortPatience is how long the NodePorts of a cluster may take to answer once
	// the Pod has an address; after that they are taken to be closed to this machine.
	nodePortPatience = 3 * time.Second
	dialTimeout      = time.Second
)

// findEdge waits until NATS takes connections from this machine, and gives the
// address: a NodePort, or a forwarded port where the cluster's nodes cannot be
// reached.
func (s *Stack) findEdge(ctx context.Context, nodePort int32) (string, error) {
	err := s.watch.await(ctx, func(pods map[string]*corev1.Pod) (bool, error) {
		return pods[partNATS] != nil && pods[partNATS].Status.PodIP != "", nil
	})
	if err != nil {
		return "", err
	}
	s.step("NATS has an address")
	patience, cancel := context.WithTimeout(ctx, nodePortPatience)
	defer cancel()
	found := make(chan string, 1)
	var wg sync.WaitGroup
	for _, node := range s.cluster.NodeAddresses() {
		address := net.JoinHostPort(node, strconv.Itoa(int(nodePort)))
		wg.Go(func() {
			for {
				if dials(patience, address) {
					select {
					case found <- address:
						cancel()
					default: // another one was faster
					}
					return
				}
				if !pause(patience, retryPause) {
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case address := <-found:
		return address, nil
	default:
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	s.opts.Logger.Info("the NodePorts of the cluster do not answer this machine; forwarding a port instead", "nodes", s.cluster.NodeAddresses())
	return s.forward(ctx)
}

func dials(ctx context.Context, address string) bool {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// forwardTimeout bounds the way from the first packet to a forwarded port.
const forwardTimeout = 10 * time.Second

// forward forwards a port of this machine to NATS until the stack is closed, and
// again whenever that breaks, since NATS's Pod may be replaced.
func (s *Stack) forward(ctx context.Context) (string, error) {
	opened := make(chan uint16, 1)
	s.wg.Go(func() {
		var local uint16 // any free one the first time, and that one from then on
		for s.ctx.Err() == nil {
			port, err := s.forwardOnce(local, opened)
			if err != nil && s.ctx.Err() == nil {
				s.opts.Logger.Debug("the forwarded port to NATS broke; forwarding again", "error", err)
			}
			local = cmp.Or(local, port)
			pause(s.ctx, 10*retryPause)
		}
	})
	select {
	case port := <-opened:
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))), nil
	case <-ctx.Done():
		return "", fmt.Errorf("NATS is reached neither by a NodePort of %v nor by a forwarded port: %w", s.cluster.NodeAddresses(), context.Cause(ctx))
	}
}

// forwardOnce forwards until that breaks or the stack is closed. It gives the local
// port, and tells it the first time.
func (s *Stack) forwardOnce(local uint16, opened chan<- uint16) (uint16, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	late := time.AfterFunc(forwardTimeout, cancel)
	defer late.Stop()
	pod := s.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.Namespace).Name(partNATS).SubResource("portforward").URL()
	dialer, err := interruptible(ctx, s.kube.config, pod)
	if err != nil {
		return 0, err
	}
	ready := make(chan struct{})
	ports := []string{fmt.Sprintf("%d:%d", local, natsPort)}
	fw, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, ports, ctx.Done(), ready, io.Discard, io.Discard)
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	s.wg.Go(func() { ended <- fw.ForwardPorts() })
	select {
	case err := <-ended:
		return 0, err
	case <-ready:
	}
	late.Stop()
	got, err := fw.GetPorts()
	if err != nil {
		cancel()
		return 0, errors.Join(err, <-ended)
	}
	select {
	case opened <- got[0].Local:
	default:
	}
	return got[0].Local, <-ended
}

// interruptible dials what the API server forwards, until ctx ends. The library's
// dialer knows no context, and would wait for ever for a server that takes the
// connection and does not answer: so the socket itself is shut down.
func interruptible(ctx context.Context, config *rest.Config, to *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, fmt.Errorf("forward a port to NATS: %w", err)
	}
	tripper, ok := upgrader.(*streamspdy.SpdyRoundTripper)
	if !ok {
		return nil, fmt.Errorf("forward a port to NATS: the client library dials by %T, which cannot be interrupted", upgrader)
	}
	tripper.Dialer = &net.Dialer{Timeout: forwardTimeout, ControlContext: func(_ context.Context, _, _ string, conn syscall.RawConn) error {
		context.AfterFunc(ctx, func() {
			_ = conn.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }) // it may be closed
		})
		return nil
	}}
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, to), nil
}

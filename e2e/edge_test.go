package e2e

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// An API server that takes the connection and then says nothing must not keep a stack
// from closing.
func TestForwardingEndsWithTheStack(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepted := make(chan net.Conn, 1)
	accepting.Go(func() {
		conn, err := listener.Accept()
		if err == nil {
			accepted <- conn
		}
	})
	t.Cleanup(func() {
		listener.Close()
		accepting.Wait()
	})
	config := &rest.Config{Host: "http://" + listener.Addr().String()}
	client, err := kubernetes.NewForConfigAndClient(config, http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	s := &Stack{Namespace: "e2e-x", kube: &kubeClient{Interface: client, config: config}, opts: Options{Logger: slog.New(slog.DiscardHandler)}}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s.wg.Go(func() {
		_, err := s.forwardOnce(0, make(chan uint16, 1))
		ended <- err
	})
	select {
	case conn := <-accepted:
		defer conn.Close()
	case err := <-ended:
		t.Fatalf("it did not get that far: %v", err)
	case <-time.After(patience):
		t.Fatal("nobody connects")
	}
	s.cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a port was forwarded by a server that has said nothing")
		}
	case <-time.After(forwardTimeout / 2): // by the context, not by the time limit
		t.Fatal("it goes on waiting for the server")
	}
	s.wg.Wait()
}

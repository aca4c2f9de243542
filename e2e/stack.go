package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/pki"
)

// readyTimeout bounds a bring-up once cluster and images are there.
const readyTimeout = 90 * time.Second

// namespaceTimeout bounds the first answer of the cluster, which takes milliseconds.
const namespaceTimeout = 20 * time.Second

// certLifetime is that of a stack's certificates, which no stack outlives.
const certLifetime = 30 * 24 * time.Hour

// Stack is a fleet that is up. Its methods may be called from any goroutine.
type Stack struct {
	// Namespace is where everything runs.
	Namespace string
	// NATSURL is where clients on this machine connect.
	NATSURL string
	// CAFile is the PEM file of who signed the broker's certificate; gone after Close.
	CAFile string
	// AdminToken is a token with the role fleet-admin, for hours; empty in userpass
	// mode.
	AdminToken string
	// DeviceIDs are the ids of the devices, vm-device-00-<namespace> and so on.
	DeviceIDs []string

	opts      Options
	begin     time.Time
	cluster   cluster.Cluster
	kube      *kubeClient
	images    map[string]string // by program
	authority *pki.Authority
	secrets   secrets
	seeds     callout.Seeds
	identity  *identity         // nil in userpass mode
	addresses map[string]string // cluster addresses of Services
	dir       string            // of files on this machine, for as long as the stack
	watch     *podWatch

	// ctx ends when the stack is closed; every goroutine ends with it and is waited
	// for in wg.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	conns  natsconn.Group

	mu             sync.Mutex
	parts          map[string][]part // by Pod
	agents         []*hostAgent
	system         *nats.Conn
	data           *nats.Conn
	brokerID       string // of the server that was opened to devices
	namespaceAsked bool   // of the cluster: there may be something to delete

	operator *nats.Conn
	client   *client.Client

	// A signal that comes during the bring-up ends that, which cleans up by itself.
	interrupt context.CancelCauseFunc
	settled   chan struct{} // closed when BringUp is over

	closing  sync.Once
	closeErr error
}

// BringUp brings a fleet up and returns when every agent takes commands. ctx bounds
// the bring-up only. Where it fails, what was made is taken down again, after what
// there is to know has been saved in a folder that the error names.
func BringUp(ctx context.Context, opts Options) (_ *Stack, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, fmt.Errorf("bring up a fleet: %w", err)
	}
	s := &Stack{
		Namespace: newNamespaceName(), opts: opts, begin: time.Now(),
		secrets: newSecrets(), addresses: map[string]string{}, parts: map[string][]part{}, settled: make(chan struct{}),
	}
	defer close(s.settled)
	for i := range opts.NumDevices {
		s.DeviceIDs = append(s.DeviceIDs, fmt.Sprintf("vm-device-%02d-%s", i, s.Namespace))
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	ctx, s.interrupt = context.WithCancelCause(ctx)
	defer s.interrupt(nil)
	closeOnSignal(s)
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("bring up a fleet: %w", err)
		if dir, saveErr := s.SaveDiagnostics(); saveErr == nil && dir != "" {
			err = fmt.Errorf("%w\ndiagnostics are in %s", err, dir)
		}
		err = errors.Join(err, s.Close())
	}()
	if err := s.getReady(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.hooks.timeout, fmt.Errorf("not up after %v", opts.hooks.timeout))
	defer cancel()
	if err := s.bringUp(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Stack) step(what string) { s.opts.Logger.Debug(what, "after", time.Since(s.begin)) }

// getReady has cluster and images: what takes minutes the first time, and is there
// later.
func (s *Stack) getReady(ctx context.Context) error {
	var images map[string]*image.Image
	err := allOrFirst(ctx,
		func(context.Context) error { return s.makeFiles() },
		func(ctx context.Context) (err error) {
			images, err = buildImages(ctx, &s.opts)
			s.step("images built")
			return err
		},
		func(ctx context.Context) error {
			provider, err := selectProvider(ctx, s.opts)
			if err != nil {
				return err
			}
			if s.cluster, err = provider.Up(ctx); err != nil {
				return err
			}
			s.step("cluster up")
			s.kube, err = newKubeClient(s.cluster.Kubeconfig())
			return err
		},
	)
	if err != nil {
		return err
	}
	return allOrFirst(ctx,
		func(ctx context.Context) (err error) {
			s.images, err = provideImages(ctx, s.cluster, images)
			s.step("images provided")
			return err
		},
		s.makeNamespace,
	)
}

// makeFiles makes what needs no cluster.
func (s *Stack) makeFiles() (err error) {
	if s.dir, err = makeDir(s.Namespace, s.opts.KeepNamespace); err != nil {
		return err
	}
	if s.authority, err = pki.New("Harmony Fleet "+s.Namespace, certLifetime); err != nil {
		return err
	}
	if s.seeds, err = callout.NewSeeds(); err != nil {
		return err
	}
	s.CAFile = filepath.Join(s.dir, "ca.pem")
	return os.WriteFile(s.CAFile, s.authority.CertPEM(), 0o644)
}

// makeNamespace makes the namespace and what Pods need to be made at all.
func (s *Stack) makeNamespace(ctx context.Context) error {
	s.wg.Go(func() { sweep(s.ctx, s.kube, s.opts.Logger) })
	ctx, cancel := context.WithTimeout(ctx, namespaceTimeout)
	defer cancel()
	err := createNamespace(ctx, s.kube, s.Namespace, s.opts.KeepNamespace, s.opts.hooks.lease)
	s.mu.Lock()
	s.namespaceAsked = err == nil || ctx.Err() != nil // after a timeout it may be there
	s.mu.Unlock()
	if err != nil {
		return s.kube.explain(err)
	}
	if !s.opts.KeepNamespace {
		s.wg.Go(func() { renew(s.ctx, s.kube, s.Namespace, s.opts.hooks.lease, s.opts.Logger) })
	}
	s.watch = newPodWatch(s.kube, s.Namespace, s.recreate)
	s.wg.Go(func() { s.watch.run(s.ctx) })
	s.step("namespace made")
	return nil
}

// bringUp makes everything at once; each part tries until what it needs is there.
func (s *Stack) bringUp(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var hopeless sync.WaitGroup
	defer hopeless.Wait() // after cancel
	defer cancel(nil)
	hopeless.Go(func() {
		if err := s.watch.hopeless(ctx); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	nodePort, err := s.makeServices(ctx)
	if err != nil {
		return err
	}
	s.step("services made")
	if s.opts.AuthMode == Callout {
		if s.identity, err = s.opts.Issuer.prepare(ctx, s); err != nil {
			return err
		}
		s.AdminToken = s.identity.adminToken
	}
	s.step("identity prepared")
	list := []func(context.Context) error{
		s.startBroker,
		func(ctx context.Context) error { return s.connect(ctx, nodePort) },
	}
	if s.opts.AuthMode == Callout {
		list = append(list, s.startCallout)
		if p := s.identity.part; p != nil {
			list = append(list, func(ctx context.Context) error { return s.createPart(ctx, *p) })
		}
	}
	if s.opts.AgentTarget.early() {
		list = append(list, func(ctx context.Context) error { return s.opts.AgentTarget.start(ctx, s, s.DeviceIDs) })
	}
	for _, c := range s.opts.Components {
		list = append(list, func(ctx context.Context) error { return s.startComponent(ctx, c) })
	}
	if err := allOrFirst(ctx, list...); err != nil {
		return s.explain(err)
	}
	return nil
}

func (s *Stack) startBroker(ctx context.Context) error {
	p, err := s.natsPart()
	if err != nil {
		return err
	}
	return s.createPart(ctx, p)
}

func (s *Stack) startCallout(ctx context.Context) error {
	cluster, err := s.clusterIssuer(ctx)
	if err != nil {
		return err
	}
	p, err := s.calloutPart(cluster)
	if err != nil {
		return err
	}
	return s.createPart(ctx, p)
}

// makeServices makes the ServiceAccount and the Services, whose addresses stand in
// certificates and configurations.
func (s *Stack) makeServices(ctx context.Context) (nodePort int32, err error) {
	list := []service{
		{name: partNATS, selector: map[string]string{labelPart: partNATS}, ports: []int32{natsPort}, nodePort: true},
		{name: serviceDevices, selector: map[string]string{labelPart: partNATS, labelOpen: "true"}, ports: []int32{natsPort}},
		{name: partIssuer, selector: map[string]string{labelPart: partIssuer}, ports: []int32{issuerPort}},
	}
	calls := []func() error{func() error {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: serviceAccount}}
		if _, err := s.kube.CoreV1().ServiceAccounts(s.Namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create ServiceAccount %s: %w", serviceAccount, err)
		}
		return nil
	}}
	var mu sync.Mutex
	for _, svc := range list {
		calls = append(calls, func() error {
			made, err := createService(ctx, s.kube, s.Namespace, svc)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			s.addresses[svc.name] = made.Spec.ClusterIP
			if svc.nodePort {
				nodePort = made.Spec.Ports[0].NodePort
			}
			return nil
		})
	}
	return nodePort, together(calls...)
}

// Client sends commands as [Stack.OperatorClient]. The stack closes it.
func (s *Stack) Client() *client.Client { return s.client }

// OperatorClient is a connection of the admin in the operators' account. The stack
// closes it.
func (s *Stack) OperatorClient() *nats.Conn { return s.operator }

// Kubeconfig is the path of the cluster's kubeconfig.
func (s *Stack) Kubeconfig() string { return s.cluster.Kubeconfig() }

package test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/cli"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	kubeclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/e2e"
	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/provider"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/agent"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/natsconn"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const patience = 2 * time.Minute

// installation is a release of the chart in a namespace of its own.
type installation struct {
	t         *testing.T
	namespace string
	cluster   cluster.Cluster
	config    *rest.Config
	kube      kubernetes.Interface
	objects   kubeclient.Client
	images    map[string]string
	ca        string // file
	issuer    string
}

var programs = []image.Program{
	{Name: "fleet", Package: "./cmd/fleet"}, {Name: "fleet-callout", Package: "./cmd/fleet-callout"},
	{Name: "fleet-operator", Package: "./cmd/fleet-operator"}, {Name: "fleet-agent", Package: "./cmd/fleet-agent"},
	{Name: "nats-server", Package: "github.com/nats-io/nats-server/v2"},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	e2e.Require(t)
	i := &installation{t: t, images: map[string]string{}}
	p, err := provider.Select(t.Context(), provider.Options{Kind: os.Getenv(e2e.EnvCluster), Registry: os.Getenv(e2e.EnvRegistry), Progress: os.Stderr})
	must(t, err)
	i.cluster, err = p.Up(t.Context())
	must(t, err)
	built, err := image.Build(t.Context(), image.Options{Dir: "../../..", Host: os.Getenv(e2e.EnvRegistry)}, programs...)
	must(t, err)
	var list []cluster.Image
	for n, img := range built {
		i.images[programs[n].Name] = img.Ref()
		list = append(list, img)
	}
	must(t, i.cluster.LoadImages(t.Context(), list...))

	i.config, err = clientcmd.BuildConfigFromFlags("", i.cluster.Kubeconfig())
	must(t, err)
	i.config.QPS = -1
	i.kube, err = kubernetes.NewForConfig(i.config)
	must(t, err)
	scheme := runtime.NewScheme()
	must(t, clientscheme.AddToScheme(scheme))
	must(t, v1alpha1.AddToScheme(scheme))
	i.objects, err = kubeclient.New(i.config, kubeclient.Options{Scheme: scheme})
	must(t, err)
	ns, err := i.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "chart-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	must(t, err)
	i.namespace = ns.Name
	t.Cleanup(func() {
		if err := i.kube.CoreV1().Namespaces().Delete(context.WithoutCancel(t.Context()), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return i
}

// values are for a cluster without volumes. Devices and the admin are
// ServiceAccounts.
func (i *installation) values() map[string]any {
	subject := func(name string) string { return "system:serviceaccount:" + i.namespace + ":" + name }
	return map[string]any{
		"images": map[string]any{
			"fleet": i.images["fleet"], "callout": i.images["fleet-callout"], "operator": i.images["fleet-operator"], "nats": i.images["nats-server"],
		},
		"nats": map[string]any{
			"storage": map[string]any{"enabled": false},
			"service": map[string]any{"type": "NodePort"},
			"hosts":   []any{i.cluster.NodeAddresses()[0]},
		},
		"callout": map[string]any{"kubernetesIssuer": map[string]any{
			"devices": "*-" + i.namespace,
			"subjects": []any{
				map[string]any{"subject": subject("admin"), "roles": []any{"fleet-admin"}},
				map[string]any{"subject": subject("device"), "roles": []any{"device"}, "device_id": "vm-" + i.namespace},
			},
		}},
	}
}

func (i *installation) install(values map[string]any) {
	i.t.Helper()
	settings := cli.New()
	settings.KubeConfig = i.cluster.Kubeconfig()
	settings.SetNamespace(i.namespace)
	var helm action.Configuration
	must(i.t, helm.Init(settings.RESTClientGetter(), i.namespace, "secret", i.t.Logf))
	install := action.NewInstall(&helm)
	install.ReleaseName, install.Namespace, install.Wait, install.Timeout = "fleet", i.namespace, true, patience
	begin := time.Now()
	i.t.Cleanup(func() {
		remove := action.NewUninstall(&helm)
		remove.Timeout = patience
		if _, err := remove.Run("fleet"); err != nil {
			i.t.Errorf("uninstall: %v", err)
		}
	})
	if _, err := install.RunWithContext(i.t.Context(), load(i.t), values); err != nil {
		i.describe()
		i.t.Fatalf("install: %v", err)
	}
	i.t.Logf("installed and ready after %v", time.Since(begin))
}

// describe logs what the Pods do.
func (i *installation) describe() {
	ctx := context.WithoutCancel(i.t.Context())
	pods, err := i.kube.CoreV1().Pods(i.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		i.t.Log(err)
		return
	}
	for _, p := range pods.Items {
		i.t.Logf("%s: %s %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses)
		tail := int64(20)
		for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			log, err := i.kube.CoreV1().Pods(i.namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: c.Name, TailLines: &tail}).DoRaw(ctx)
			i.t.Logf("%s/%s: %s %v", p.Name, c.Name, log, err)
		}
	}
}

// serviceAccount makes one and gives a token of its for the fleet.
func (i *installation) serviceAccount(name string) string {
	i.t.Helper()
	accounts := i.kube.CoreV1().ServiceAccounts(i.namespace)
	_, err := accounts.Create(i.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	must(i.t, err)
	lifetime := int64(3600)
	token, err := accounts.CreateToken(i.t.Context(), name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"fleet"}, ExpirationSeconds: &lifetime},
	}, metav1.CreateOptions{})
	must(i.t, err)
	return token.Status.Token
}

// broker is where clients outside of the cluster connect.
func (i *installation) broker() (url, caFile string) {
	i.t.Helper()
	svc, err := i.kube.CoreV1().Services(i.namespace).Get(i.t.Context(), "fleet-nats", metav1.GetOptions{})
	must(i.t, err)
	secret, err := i.kube.CoreV1().Secrets(i.namespace).Get(i.t.Context(), "fleet-secrets", metav1.GetOptions{})
	must(i.t, err)
	caFile = filepath.Join(i.t.TempDir(), "ca.pem")
	must(i.t, os.WriteFile(caFile, secret.Data["ca.pem"], 0o600))
	return "tls://" + net.JoinHostPort(i.cluster.NodeAddresses()[0], strconv.Itoa(int(svc.Spec.Ports[0].NodePort))), caFile
}

// runAgent runs an agent on this machine, with its container engine.
func (i *installation) runAgent(id, url, ca, token, socket string) {
	i.t.Helper()
	dir := i.t.TempDir()
	tokenFile := filepath.Join(dir, "token")
	must(i.t, os.WriteFile(tokenFile, []byte(token), 0o600))
	text, err := toml.Marshal(map[string]any{
		"agent":       map[string]any{"device_id": id, "state_dir": filepath.Join(dir, "state"), "stop_timeout": "500ms"},
		"nats":        map[string]any{"url": url, "tls": map[string]any{"ca": ca}, "retry_min": "50ms", "retry_max": "500ms"},
		"credentials": map[string]any{"type": credentials.TypeTokenFile, "token_file": tokenFile},
		"runtime":     map[string]any{"socket": socket},
	})
	must(i.t, err)
	file := filepath.Join(dir, "agent.toml")
	must(i.t, os.WriteFile(file, text, 0o600))
	startAgent(i.t, file)
}

// TestTheInstalledChartIsAFleet installs the chart, has a device and a person sign in with
// tokens of the cluster, pings, and rolls a Deployment out.
func TestTheInstalledChartIsAFleet(t *testing.T) {
	i := newInstallation(t)
	podman := podmantest.Start(t)
	podman.Image(t, "localhost/hello:1")
	i.install(i.values())

	url, ca := i.broker()
	id := "vm-" + i.namespace
	i.runAgent(id, url, ca, i.serviceAccount("device"), podman.Socket)

	token := i.serviceAccount("admin")
	user, ok := credentials.TokenUser(token)
	if !ok {
		t.Fatal("the token has no user")
	}
	nc, err := natsconn.Connect(t.Context(), natsconn.Config{
		URLs: []string{url}, TLS: natsconn.TLS{CA: ca}, InboxPrefix: command.InboxPrefix(command.UID(user)), Name: "chart test",
		Credentials: credentials.Static(credentials.Credential{User: string(access.Ops), Token: token}),
	})
	must(t, err)
	t.Cleanup(nc.Close)
	fleet, err := client.New(nc, client.Options{})
	must(t, err)
	t.Cleanup(func() { _ = fleet.Close() })
	testwait.For(t, patience, "a ping", func() bool {
		reply, err := fleet.Ping(t.Context(), id)
		return err == nil && reply.DeviceID == id && reply.Runtime == command.RuntimeReady
	})

	testwait.For(t, patience, "the Device to be online", func() bool {
		var d v1alpha1.Device
		err := i.objects.Get(t.Context(), kubeclient.ObjectKey{Name: id}, &d)
		return err == nil && meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.DeviceOnline)
	})
	deployment := &v1alpha1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: "hello"}}
	deployment.Spec.Selector.All = true
	deployment.Spec.Score = v1alpha1.Score{Type: "PodmanV0", Data: v1alpha1.ScoreData{Services: []v1alpha1.Service{{
		Name: "web", Image: "localhost/hello:1", Pull: "never", Command: []string{"serve", "from the chart"}, Ports: []string{"18090:80"},
	}}}}
	must(t, i.objects.Create(t.Context(), deployment))
	testwait.For(t, patience, "the rollout to be complete", func() bool {
		err := i.objects.Get(t.Context(), kubeclient.ObjectKeyFromObject(deployment), deployment)
		return err == nil && deployment.Status.Phase == v1alpha1.RolloutComplete && deployment.Status.Ready == 1
	})
	testwait.For(t, patience, "the container to answer", func() bool {
		text, err := podman.Get("http://127.0.0.1:18090/")
		return err == nil && strings.TrimSpace(text) == "from the chart"
	})
	must(t, i.objects.Delete(t.Context(), deployment))
	testwait.For(t, patience, "the Deployment to be gone", func() bool {
		return apierrors.IsNotFound(i.objects.Get(t.Context(), kubeclient.ObjectKeyFromObject(deployment), deployment))
	})
}

// startAgent runs the agent of this tree with a configuration file until the test ends.
func startAgent(t *testing.T, file string) {
	t.Helper()
	cfg, err := agent.LoadConfig(file)
	must(t, err)
	options, err := cfg.Options(slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	a, err := agent.New(options)
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
}

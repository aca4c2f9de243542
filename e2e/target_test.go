package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/testcert"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestAgentsOnThisMachine(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode, NumDevices: 2, AgentTarget: Host{}})
		pingAll(t, s)
		if reply, err := s.Client().Ping(t.Context(), s.DeviceIDs[0]); err != nil || reply.Runtime != command.RuntimeDisabled {
			t.Errorf("reply %+v, %v", reply, err)
		}
		for _, name := range podsOf(t, s.kube, s.Namespace) {
			if strings.HasPrefix(name, podName("")) {
				t.Errorf("there is a Pod %s", name)
			}
		}
		agents := s.hostAgents()
		begin := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > closeLimit {
			t.Errorf("Close took %v", took)
		}
		for _, a := range agents {
			if err := syscall.Kill(a.Cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the agent of %s lives: %v", a.device, err)
			}
		}
	})
}

// The kernel takes the end of the thread that started a process for the end of its
// parent. Threads end while a test runs, of those that have changed namespaces for
// example: an agent must not end with one of them.
func TestAgentOnThisMachineOutlivesTheThreadThatAskedForIt(t *testing.T) {
	s := New(t, Options{AuthMode: UserPass, AgentTarget: Host{}})
	binary, err := Host{}.build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	device := "vm-device-01-" + s.Namespace
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		started <- Host{}.startOne(t.Context(), s, binary, device)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	testwait.For(t, patience, "the agent to take commands", func() bool {
		_, err := s.Client().Ping(t.Context(), device)
		return err == nil
	})
	for _, a := range s.hostAgents() {
		select {
		case <-a.Ended():
			t.Errorf("the agent of %s has ended: %v", a.device, a.Wait())
		default:
		}
	}
}

func TestAgentOnThisMachineThatHangsIsKilled(t *testing.T) {
	Require(t)
	s, err := BringUp(t.Context(), Options{AuthMode: UserPass, AgentTarget: Host{}})
	if err != nil {
		t.Fatal(err)
	}
	a := s.hostAgents()[0]
	if err := a.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err = s.Close()
	if took := time.Since(begin); took > hostStopTimeout+closeLimit {
		t.Errorf("Close took %v", took)
	}
	if err == nil || !strings.Contains(err.Error(), "was killed") || !strings.Contains(err.Error(), a.device) {
		t.Errorf("Close said: %v", err)
	}
	if err := syscall.Kill(a.Cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the agent lives: %v", err)
	}
}

func TestAgentOnThisMachineHasItsPodman(t *testing.T) {
	Require(t)
	if _, err := exec.LookPath("podman"); err != nil {
		t.Fatal("podman is not on PATH: install it: apt-get install -y podman")
	}
	socket := filepath.Join(t.TempDir(), "podman.sock")
	ctx, cancel := context.WithCancel(t.Context())
	service := exec.CommandContext(ctx, "podman", "system", "service", "--time=0", "unix://"+socket)
	service.Cancel = func() error { return service.Process.Signal(syscall.SIGTERM) }
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = service.Wait() // by the signal
	})
	testwait.For(t, patience, "Podman's socket", func() bool {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	s := New(t, Options{AgentTarget: Host{RuntimeSocket: "unix://" + socket}})
	testwait.For(t, patience, "the agent to find Podman", func() bool {
		reply, err := s.Client().Ping(t.Context(), s.DeviceIDs[0])
		return err == nil && reply.Runtime == command.RuntimeReady
	})
}

// An issuer outside of the cluster, reached by Pods through this machine's address on
// the way to the node.
func TestExternalIssuer(t *testing.T) {
	for name, target := range map[string]AgentTarget{"pod": Pod{}, "host": Host{}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, c := kubeOf(t)
			here := addressTowards(t, c.NodeAddresses()[0])
			cert := testcert.New(t, here)
			srv, err := issuer.Start(t.Context(), issuer.Options{
				Listen: net.JoinHostPort(here, "0"), TLSCert: cert.Cert, TLSKey: cert.Key,
				Users: []issuer.User{{Name: "boss", Roles: []string{string(access.RoleAdmin)}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(srv.Close)
			boss, err := srv.KeyFile("boss")
			if err != nil {
				t.Fatal(err)
			}
			keyFile := filepath.Join(t.TempDir(), "boss.json")
			if err := os.WriteFile(keyFile, boss, 0o600); err != nil {
				t.Fatal(err)
			}
			s := New(t, Options{NumDevices: 2, AgentTarget: target, Issuer: External{
				URL: srv.URL(), ProjectID: srv.ProjectID(), CAFile: cert.CA, KeyFile: keyFile,
				DeviceKey: func(_ context.Context, device string) ([]byte, error) {
					if err := srv.AddUser(issuer.User{Name: "device-" + device, Roles: []string{string(access.RoleDevice)}}); err != nil {
						return nil, err
					}
					return srv.KeyFile("device-" + device)
				},
			}})
			pingAll(t, s)
			for _, name := range podsOf(t, s.kube, s.Namespace) {
				if name == partIssuer {
					t.Error("the fixture runs too")
				}
			}
		})
	}
}

func TestExternalIssuerThatCannotBeUsed(t *testing.T) {
	kube, c := kubeOf(t)
	key := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(key, []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	none := func(context.Context, string) ([]byte, error) { return nil, errors.New("none") }
	for name, test := range map[string]struct {
		issuer External
		words  []string
	}{
		"no function for devices": {External{URL: "https://127.0.0.1:1", ProjectID: "1", KeyFile: key}, []string{"DeviceKey"}},
		"no URL":                  {External{ProjectID: "1", KeyFile: key, DeviceKey: none}, []string{"issuer"}},
		"a key file that is none": {External{URL: "https://127.0.0.1:1", ProjectID: "1", KeyFile: key, DeviceKey: none}, []string{"https://127.0.0.1:1", "key"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantFailure(t, kube, 30*time.Second, Options{Issuer: test.issuer, hooks: hooks{provider: given{Cluster: c}}}, test.words...)
		})
	}
}

// addressTowards is the address of this machine that another one sees.
func addressTowards(t *testing.T, other string) string {
	t.Helper()
	conn, err := net.Dial("udp", net.JoinHostPort(other, "9")) // sends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// A second issuer stands for whatever a later part of the system may be: a program
// with files, arguments and a Pod of its own.
func TestComponentRunsBesideTheOthers(t *testing.T) {
	prepared := false
	s := New(t, Options{Components: []Component{{
		Name: "second-oidc", Program: programOIDC, Args: []string{"--config", filesDir + "/oidc.toml"},
		Files: func(site Site) (map[string][]byte, error) {
			if site.Token == "" || !strings.HasPrefix(site.NATSURL, "tls://") {
				return nil, fmt.Errorf("site %q %q", site.Namespace, site.NATSURL)
			}
			return map[string][]byte{"oidc.toml": []byte("listen = \":9443\"\nissuer = \"https://" + site.Namespace + ":9443\"\n")}, nil
		},
		Prepare: func(ctx context.Context, cluster *rest.Config, site Site) error {
			kube, err := kubernetes.NewForConfig(cluster)
			if err != nil {
				return err
			}
			prepared = true
			_, err = kube.CoreV1().ConfigMaps(site.Namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "prepared"}}, metav1.CreateOptions{})
			return err
		},
		Edit: func(spec *corev1.PodSpec) { spec.Hostname = "edited" },
	}}})
	testwait.For(t, patience, "the component to serve", func() bool {
		log, err := s.podLog(t.Context(), "second-oidc", "second-oidc", false, maxLogLines)
		return err == nil && strings.Contains(string(log), "issuer ready") && strings.Contains(string(log), s.Namespace+":9443")
	})
	pod, err := s.kube.CoreV1().Pods(s.Namespace).Get(t.Context(), "second-oidc", metav1.GetOptions{})
	if err != nil || pod.Spec.Hostname != "edited" || !prepared {
		t.Errorf("Pod %v, %v; prepared: %v", pod.Spec.Hostname, err, prepared)
	}
	pingAll(t, s)
}

// With ForceRebuild every program is linked again, and the images are the same ones.
func TestForcedRebuildGivesTheSameImages(t *testing.T) {
	Require(t)
	opts := Options{AuthMode: UserPass}
	if err := opts.setDefaults(); err != nil {
		t.Fatal(err)
	}
	before, err := buildImages(t.Context(), &opts)
	if err != nil {
		t.Fatal(err)
	}
	again, err := buildImages(t.Context(), &opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(EnvForceRebuild, "1")
	forced := Options{AuthMode: UserPass}
	if err := forced.setDefaults(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { built.forced = false })
	rebuilt, err := buildImages(t.Context(), &forced)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []image.Program{programAgent, programNATS} {
		if again[p.Name] != before[p.Name] {
			t.Errorf("%s was made again without a cause", p.Name)
		}
		if rebuilt[p.Name] == before[p.Name] {
			t.Errorf("%s was not made again", p.Name)
		}
		if rebuilt[p.Name].Ref() != before[p.Name].Ref() {
			t.Errorf("the same source gave %s and %s", before[p.Name].Ref(), rebuilt[p.Name].Ref())
		}
	}
	s := New(t, forced)
	pingAll(t, s)
}

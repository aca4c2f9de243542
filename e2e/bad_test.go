package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// wantFailure brings up what cannot come up, and wants one message with all of the
// words, in time, and nothing left.
func wantFailure(t *testing.T, kube *kubeClient, limit time.Duration, opts Options, words ...string) error {
	t.Helper()
	t.Setenv(EnvDiagnostics, t.TempDir())
	var before []string
	if kube != nil {
		before = ourNamespaces(t, kube)
	}
	files := filesOfStacks(t)
	begin := time.Now()
	s, err := BringUp(t.Context(), opts)
	if err == nil {
		t.Error(errors.Join(errors.New("it came up"), s.Close()))
		return nil
	}
	if took := time.Since(begin); took > limit {
		t.Errorf("the message came after %v, later than %v", took, limit)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in: %v", w, err)
		}
	}
	if kube != nil {
		if after := ourNamespaces(t, kube); !slices.Equal(before, after) {
			t.Errorf("namespaces before %v, after %v", before, after)
		}
	}
	for _, dir := range filesOfStacks(t) {
		if !slices.Contains(files, dir) {
			t.Errorf("files are left: %s", dir)
		}
	}
	return err
}

// filesOfStacks are the directories of stacks of this process.
func filesOfStacks(t *testing.T) []string {
	t.Helper()
	owners, err := filepath.Glob(filepath.Join(os.TempDir(), filesPrefix+"*", ownerFile))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, file := range owners {
		if text, err := os.ReadFile(file); err == nil && string(text) == owner() {
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	return dirs
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for name, test := range map[string]struct {
		opts Options
		want string
	}{
		"auth mode":         {Options{AuthMode: "basic"}, "callout or userpass"},
		"too many devices":  {Options{NumDevices: MaxDevices + 1}, "from 1 to 1000"},
		"less than nothing": {Options{NumDevices: -1}, "from 1 to 1000"},
	} {
		t.Run(name, func(t *testing.T) { wantFailure(t, nil, time.Second, test.opts, test.want) })
	}
}

func TestClusterThatDoesNotAnswer(t *testing.T) {
	kube, c := kubeOf(t)
	file := writeKubeconfig(t, "https://127.0.0.1:1", nil, "")
	wantFailure(t, kube, 25*time.Second, Options{hooks: hooks{provider: given{Cluster: c, kubeconfig: file}}},
		"https://127.0.0.1:1", "is the cluster up", "kubeconfig")
}

func TestKubeconfigThatIsNone(t *testing.T) {
	kube, c := kubeOf(t)
	file := filepath.Join(t.TempDir(), "none")
	wantFailure(t, kube, 25*time.Second, Options{hooks: hooks{provider: given{Cluster: c, kubeconfig: file}}}, file)
}

func TestUserWhoMayNotMakeNamespaces(t *testing.T) {
	kube, c := kubeOf(t)
	// A ServiceAccount without a role has the rights of nobody.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-nobody-"}}
	account, err := kube.CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := kube.CoreV1().ServiceAccounts("default").Delete(context.WithoutCancel(t.Context()), account.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	token, err := kube.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), account.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := writeKubeconfig(t, kube.config.Host, kube.config.CAData, token.Status.Token)
	err = wantFailure(t, kube, 25*time.Second, Options{hooks: hooks{provider: given{Cluster: c, kubeconfig: file}}},
		"create namespace", "may not", "ask for the right")
	if !apierrors.IsForbidden(errors.Unwrap(errors.Unwrap(err))) && !strings.Contains(err.Error(), account.Name) {
		t.Errorf("the cluster's own answer is lost: %v", err)
	}
}

func writeKubeconfig(t *testing.T, server string, ca []byte, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: server, CertificateAuthorityData: ca}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, file)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestImageThatFailsToBuild(t *testing.T) {
	kube, c := kubeOf(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module broken.example/x\n\ngo 1.26\n", "cmd/fleet-agent/main.go": "package main\n\nfunc main() { nothing() }\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wantFailure(t, kube, 60*time.Second, Options{AuthMode: UserPass, hooks: hooks{provider: given{Cluster: c}, dir: dir}},
		"build images", "go build", "fleet-agent")
}

func TestPodWhoseImageIsNotThere(t *testing.T) {
	kube, _ := kubeOf(t)
	err := wantFailure(t, kube, 30*time.Second, Options{AuthMode: UserPass, hooks: hooks{image: "harmony-fleet.local/nothing:there"}},
		"Pod fleet-agent-vm-device-00-", "does not start", "ErrImageNeverPull", "harmony-fleet.local/nothing:there", "diagnostics are in ")
	if err != nil {
		lookAtDiagnostics(t, err, ".yaml", "ErrImageNeverPull")
	}
}

func TestPodWhoseProgramEndsAtOnce(t *testing.T) {
	kube, c := kubeOf(t)
	images, err := buildImages(t.Context(), &Options{AgentTarget: Pod{}, AuthMode: UserPass})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provideImages(t.Context(), c, images); err != nil {
		t.Fatal(err)
	}
	// NATS does not know the agent's arguments.
	err = wantFailure(t, kube, 45*time.Second, Options{AuthMode: UserPass, hooks: hooks{image: images[programNATS.Name].Ref()}},
		"Pod fleet-agent-vm-device-00-", "its program has ended 2 times", "exit code 1", "diagnostics are in ")
	if err != nil {
		lookAtDiagnostics(t, err, ".previous.log", "nats-server: ")
	}
}

func TestTimeThatIsUp(t *testing.T) {
	kube, _ := kubeOf(t)
	// The first run may have to build and load images; that is not in this time.
	wantFailure(t, kube, 30*time.Second, Options{NumDevices: 2, AuthMode: UserPass, hooks: hooks{timeout: 300 * time.Millisecond}},
		"not up after 300ms", "Pod fleet-agent-vm-device-00-")
}

// lookAtDiagnostics looks for text in a saved file whose name ends so.
func lookAtDiagnostics(t *testing.T, err error, file, text string) {
	t.Helper()
	_, dir, _ := strings.Cut(err.Error(), "diagnostics are in ")
	dir, _, _ = strings.Cut(dir, "\n")
	entries, readErr := os.ReadDir(dir)
	if readErr != nil {
		t.Error(readErr)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), file) {
			continue
		}
		if content, _ := os.ReadFile(filepath.Join(dir, e.Name())); strings.Contains(string(content), text) {
			return
		}
	}
	t.Errorf("no %q in any %s of %s, which has %v", text, file, dir, entries)
}

package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/harmony-fleet/fleet/e2e/cluster/internal/testslot"
	"github.com/harmony-fleet/fleet/e2e/internal/kubeapi"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testslot.Release()
	os.Exit(code)
}

// result is what a command wrote.
type result struct{ stdout, stderr string }

// run runs `fleet cluster` with args on this run's own cluster.
func run(t *testing.T, asJSON bool, args ...string) (result, error) {
	t.Helper()
	slot := testslot.Take()
	root := New(Settings{JSON: func() bool { return asJSON }})
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetArgs(append([]string{"--dir", slot.Dir, "--name", slot.Name, "--network", slot.Network.String()}, args...))
	var stdout, stderr bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	err := root.ExecuteContext(context.Background())
	return result{stdout.String(), stderr.String()}, err
}

func TestMistakesAreNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--network", "here", "up"}, `--network "here": want an IPv4 network such as 10.213.0.0/16`},
		{[]string{"--network", "10.0.0.0/24", "status"}, "want an IPv4 /16"},
		{[]string{"--dir", "somewhere", "status"}, "want a clean absolute path"},
		{[]string{"--name", "Fleet", "status"}, "want a DNS label"},
		{[]string{"--dir", "/nowhere/cluster", "kubeconfig"}, "the one in /nowhere/cluster is down: start it with: fleet cluster up"},
		{[]string{"--dir", "/nowhere/cluster", "load", "x.tar"}, "start it with: fleet cluster up"},
		{[]string{"up", "--insecure-registry", "http://host"}, `registry "http://host": want host:port`},
		{[]string{"load"}, "requires at least 1 arg"},
		{[]string{"up", "now"}, `unknown command "now"`},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			if _, err := run(t, false, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

// TestOrdinaryManifestRuns does what a person would: cluster up, an image made with
// Podman, a manifest of the ordinary kind.
func TestOrdinaryManifestRuns(t *testing.T) {
	if os.Getenv("HARMONY_FLEET_E2E") != "1" {
		t.Skip("needs root, containerd, Podman and some minutes: set HARMONY_FLEET_E2E=1")
	}
	archives := podmanArchives(t)
	t.Cleanup(func() {
		if r, err := run(t, false, "down"); err != nil || r.stdout != "[cluster] down\n" {
			t.Errorf("down: %+v, %v", r, err)
		}
		var s struct{ State string }
		r, err := run(t, true, "status")
		if err := errors.Join(err, json.Unmarshal([]byte(r.stdout), &s)); err != nil || s.State != "down" {
			t.Errorf("status after down: %+v, %v", r, err)
		}
	})
	r, err := run(t, true, "up")
	if err != nil {
		t.Fatal(err)
	}
	var up struct {
		State, Kubeconfig string
		Node              string `json:"node_address"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &up); err != nil || up.State != "up" {
		t.Fatalf("got %+v, %v", r, err)
	}
	for _, archive := range archives {
		if r, err := run(t, false, "load", archive); err != nil || r.stderr != "loaded "+archive+"\n" {
			t.Fatalf("load: %+v, %v", r, err)
		}
	}
	if r, err := run(t, false, "load", "/nowhere.tar"); err == nil || !strings.Contains(err.Error(), "/nowhere.tar") {
		t.Errorf("load of nothing: %+v, %v", r, err)
	}
	noImage := filepath.Join(t.TempDir(), "no.tar")
	if err := os.WriteFile(noImage, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := run(t, false, "load", noImage); err == nil || !strings.Contains(err.Error(), "load images of "+noImage) {
		t.Errorf("load of a text: %+v, %v", r, err)
	}
	r, err = run(t, false, "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig([]byte(r.stdout))
	if err != nil {
		t.Fatal(err)
	}
	client, done, err := kubeapi.Client(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	for _, name := range []string{"docker-archive", "oci-archive"} {
		t.Run(name, func(t *testing.T) {
			nodePort := apply(t, client, name)
			url := fmt.Sprintf("http://%s:%d", up.Node, nodePort)
			awaitGet(t, url, "hello from uid 1000")
			awaitGet(t, url+"/fetch?url=http://"+name, "hello from uid 1000")
			awaitGet(t, url+"/fetch?url=http://"+name+".default.svc.cluster.local", "hello from uid 1000")
		})
	}
	if r, err := run(t, false, "status"); err != nil || !strings.Contains(r.stdout, "kube-apiserver") || !strings.Contains(r.stdout, "v1.34") {
		t.Errorf("status: %+v, %v", r, err)
	}
}

// apply makes the Deployment and the Service of testdata/web.yaml under another name
// and returns the NodePort.
func apply(t *testing.T, client kubernetes.Interface, name string) int32 {
	t.Helper()
	content, err := os.ReadFile("testdata/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(strings.ReplaceAll(string(content), "NAME", name)), 4096)
	var deployment appsv1.Deployment
	var service corev1.Service
	if err := errors.Join(decoder.Decode(&deployment), decoder.Decode(&service)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AppsV1().Deployments("default").Create(t.Context(), &deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	made, err := client.CoreV1().Services("default").Create(t.Context(), &service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	testwait.For(t, 30*time.Second, "Deployment "+name+" available", func() bool {
		d, err := client.AppsV1().Deployments("default").Get(t.Context(), name, metav1.GetOptions{})
		return err == nil && d.Status.AvailableReplicas == *deployment.Spec.Replicas
	})
	return made.Spec.Ports[0].NodePort
}

// awaitGet gets the page until it is want.
func awaitGet(t *testing.T, url, want string) {
	t.Helper()
	client := http.Client{Timeout: 6 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var got string
	testwait.For(t, 15*time.Second, url, func() bool {
		response, err := client.Get(url)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		got = string(body)
		return err == nil && got == want
	})
}

// podmanArchives makes an image with Podman, and saves it in both of its formats
// under localhost/<format>:1.
func podmanArchives(t *testing.T) []string {
	t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		t.Fatal("podman is not on PATH: apt-get install -y podman runc")
	}
	dir := t.TempDir()
	do := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TMPDIR="+dir)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, output)
		}
	}
	do("go", "build", "-o", filepath.Join(dir, "probe"), "../local/testdata/probe")
	do("tar", "-C", dir, "-cf", filepath.Join(dir, "root.tar"), "probe")
	// A store of the test's own; vfs mounts nothing.
	podman := []string{"--root", filepath.Join(dir, "store"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs", "--events-backend", "none"}
	var archives []string
	for _, format := range []string{"docker-archive", "oci-archive"} {
		name, archive := "localhost/"+format+":1", filepath.Join(dir, format+".tar")
		do("podman", append(podman, "import", "--change", `ENTRYPOINT ["/probe"]`, "--change", "USER 1000", filepath.Join(dir, "root.tar"), name)...)
		do("podman", append(podman, "save", "--format", format, "--output", archive, name)...)
		archives = append(archives, archive)
	}
	return archives
}

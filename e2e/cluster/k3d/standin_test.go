package k3d

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The programs k3d and docker are this test's binary under their names. They answer
// as k3d v5.9.0 does by its source, and write down how they were called. Their
// state is files in a directory:
//
//	calls           one command line on a line
//	cluster         absent, running or stopped
//	labelled        there if the cluster carries the label
//	fail            what fails: lines of the form "k3d cluster create: message"
//	creating        there while k3d creates
//	kubeconfig
//	images/<node>/  one file for each image, with its name in it

const stateVariable = "FLEET_TEST_STANDIN"

func TestMain(m *testing.M) {
	if state := os.Getenv(stateVariable); state != "" {
		if program := filepath.Base(os.Args[0]); program == "k3d" || program == "docker" {
			s := standIn{state}
			if err := s.run(program, os.Args[1:]); err != nil {
				fmt.Fprintf(os.Stderr, "INFO[0000] some progress\nFATA[0000] %v\n", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
		_, err := New(Options{Dir: filepath.Join(state, "dir")}).Up(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type standIn struct{ dir string }

func (s standIn) read(name string) string {
	content, _ := os.ReadFile(filepath.Join(s.dir, name)) // none is empty
	return strings.TrimSpace(string(content))
}

func (s standIn) write(name, content string) error {
	path := filepath.Join(s.dir, name)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600))
}

func (s standIn) run(program string, args []string) error {
	line := program + " " + strings.Join(args, " ")
	calls, err := os.OpenFile(filepath.Join(s.dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(calls, line)
	if err := errors.Join(err, calls.Close()); err != nil {
		return err
	}
	for fail := range strings.Lines(s.read("fail")) {
		if command, message, _ := strings.Cut(strings.TrimSpace(fail), ": "); strings.HasPrefix(line, command) {
			return errors.New(message)
		}
	}
	is := func(prefix string) bool { return strings.HasPrefix(line, prefix) }
	switch {
	case is("k3d cluster list -o json"):
		content, err := os.ReadFile(os.Getenv("FLEET_TEST_DATA") + "/" + s.read("cluster") + ".json")
		fmt.Print(string(content))
		return err
	case is("k3d cluster create fleet-e2e "):
		return s.create()
	case is("k3d cluster start fleet-e2e"):
		return s.write("cluster", "running")
	case is("k3d cluster delete fleet-e2e"):
		return s.write("cluster", "absent")
	case is("k3d kubeconfig get fleet-e2e"):
		fmt.Println("---")
		fmt.Println(s.read("kubeconfig"))
	case is("docker version"):
		fmt.Println("28.1.1")
	case is("docker inspect"):
		if s.read("labelled") != "" {
			fmt.Println(madeBy)
		} else {
			fmt.Println() // what the template gives for a label that is not there
		}
	case is("docker exec"):
		return s.exec(args[1:])
	default:
		return fmt.Errorf("unknown command %q for %q", args, program)
	}
	return nil
}

// create fails if another one is under way, as two k3d get into each other's way.
func (s standIn) create() error {
	marker, err := os.OpenFile(filepath.Join(s.dir, "creating"), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return errors.New("two processes create the cluster at once")
	}
	marker.Close()
	if s.read("cluster") != "absent" {
		return errors.New("Failed to create cluster 'fleet-e2e' because a cluster with that name already exists") //nolint:staticcheck // k3d's words
	}
	<-time.After(100 * time.Millisecond) // the work, which others may fall into
	return errors.Join(s.write("labelled", "yes"), s.write("cluster", "running"), os.Remove(filepath.Join(s.dir, "creating")))
}

// exec is ctr in a node.
func (s standIn) exec(args []string) error {
	interactive := args[0] == "-i"
	if interactive {
		args = args[1:]
	}
	images := filepath.Join("images", args[0])
	switch command := strings.Join(args[1:], " "); {
	case strings.HasPrefix(command, "ctr -n k8s.io images check name=="):
		ref := strings.TrimPrefix(command, "ctr -n k8s.io images check name==")
		fmt.Println("REF TYPE DIGEST STATUS SIZE UNPACKED")
		if s.read(filepath.Join(images, fileName(ref))) == ref {
			fmt.Printf("%s application/vnd.oci.image.manifest.v1+json sha256:0 complete (2/2) 17.0 MiB/17.0 MiB true\n", ref)
		}
	case command == "ctr -n k8s.io images import -" && interactive:
		ref, err := nameIn(os.Stdin)
		if err != nil {
			return err
		}
		return s.write(filepath.Join(images, fileName(ref)), ref)
	default:
		return fmt.Errorf("unknown command %q in a node", command)
	}
	return nil
}

func fileName(ref string) string { return strings.NewReplacer("/", "_", ":", "_").Replace(ref) }

// nameIn returns the name of the image in an archive, which it reads to its end.
func nameIn(archive io.Reader) (string, error) {
	var index struct {
		Manifests []struct{ Annotations map[string]string }
	}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if header.Name == "index.json" {
			if err := json.NewDecoder(r).Decode(&index); err != nil {
				return "", err
			}
		}
	}
	if len(index.Manifests) != 1 {
		return "", errors.New("no image in the archive")
	}
	return index.Manifests[0].Annotations["io.containerd.image.name"], nil
}

// standIns puts the programs on PATH, alone, with a cluster in the given state.
func standIns(t *testing.T, state string) standIn {
	t.Helper()
	s := standIn{t.TempDir()}
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"k3d", "docker"} {
		if err := os.Symlink(self, filepath.Join(bin, program)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("FLEET_TEST_DATA", data)
	t.Setenv(stateVariable, s.dir)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // a stand-in would take a second to end
	api := apiServer(t)
	if err := errors.Join(s.write("cluster", state), s.write("kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: k3d-fleet-e2e
clusters: [{name: k3d-fleet-e2e, cluster: {server: %s}}]
contexts: [{name: k3d-fleet-e2e, context: {cluster: k3d-fleet-e2e, user: admin@k3d-fleet-e2e}}]
users: [{name: admin@k3d-fleet-e2e, user: {}}]`, api))); err != nil {
		t.Fatal(err)
	}
	return s
}

// apiServer answers what Up asks of the cluster: its nodes, of which the server is
// not ready the first time.
func apiServer(t *testing.T) string {
	t.Helper()
	asked := make(chan struct{}, 1)
	asked <- struct{}{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/nodes" {
			http.NotFound(w, r)
			return
		}
		status := "True"
		select {
		case <-asked:
			status = "False"
		default:
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"NodeList","apiVersion":"v1","items":[{"metadata":{"name":"k3d-fleet-e2e-server-0"},"status":{"conditions":[{"type":"Ready","status":%q}]}}]}`, status)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// calls are the command lines so far that begin with prefix.
func (s standIn) calls(prefix string) (list []string) {
	for line := range strings.Lines(s.read("calls")) {
		if strings.HasPrefix(line, prefix) {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// loaded are the images in a node.
func (s standIn) loaded(node string) (refs []string) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "images", node, "*")) // the pattern is well formed
	for _, f := range files {
		content, _ := os.ReadFile(f)
		refs = append(refs, string(content))
	}
	slices.Sort(refs)
	return refs
}

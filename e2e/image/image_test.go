package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// module makes a module with one program and returns its directory.
func module(t *testing.T, source string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "go.mod"), "module example.test/m\n\ngo 1.26\n")
	write(t, filepath.Join(dir, "cmd/hello/main.go"), source)
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

const hello = "package main\n\nfunc main() { println(\"hello\") }\n"

func build(t *testing.T, o Options, p Program) *Image {
	t.Helper()
	images, err := Build(t.Context(), o, p)
	if err != nil {
		t.Fatal(err)
	}
	return images[0]
}

var program = Program{Name: "hello", Package: "./cmd/hello"}

func TestSameSourceIsTheSameImage(t *testing.T) {
	dir, cache := module(t, hello), t.TempDir()
	first := build(t, Options{Dir: dir, CacheDir: cache}, program)
	begin := time.Now()
	again := build(t, Options{Dir: dir, CacheDir: cache}, program)
	t.Logf("unchanged: %v", time.Since(begin))
	rebuilt := build(t, Options{Dir: dir, CacheDir: cache, Rebuild: true}, program)
	// Another checkout of the same source.
	elsewhere := build(t, Options{Dir: module(t, hello), CacheDir: t.TempDir()}, program)
	for what, other := range map[string]*Image{"unchanged": again, "rebuilt": rebuilt, "elsewhere": elsewhere} {
		if other.Ref() != first.Ref() || other.Digest() != first.Digest() {
			t.Errorf("%s: %s, first %s", what, other.Ref(), first.Ref())
		}
	}
	write(t, filepath.Join(dir, "cmd/hello/main.go"), strings.Replace(hello, "hello", "changed", 1))
	if changed := build(t, Options{Dir: dir, CacheDir: cache}, program); changed.Ref() == first.Ref() {
		t.Error("a change of source does not change the name")
	}
	if want := DefaultHost + "/hello:" + strings.Replace(first.Digest(), ":", "-", 1); first.Ref() != want {
		t.Errorf("name %s, want %s", first.Ref(), want)
	}
}

// The go command tells by what stands inside a binary whether it is up to date, so a
// mark at its end stays until it is linked again.
func TestNothingIsLinkedThatIsUpToDate(t *testing.T) {
	dir, cache := module(t, hello), t.TempDir()
	const mark = "mark"
	// marked builds and says whether the binary still has the mark, which it gets.
	marked := func(o Options) bool {
		t.Helper()
		o.Dir, o.CacheDir = dir, cache
		build(t, o, program)
		found, err := filepath.Glob(filepath.Join(cache, "images", "*", "hello"))
		if err != nil || len(found) != 1 {
			t.Fatalf("binaries %v, %v", found, err)
		}
		content, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(string(content), mark) {
			return true
		}
		if err := os.WriteFile(found[0], append(content, mark...), 0o700); err != nil {
			t.Fatal(err)
		}
		return false
	}
	marked(Options{})
	if !marked(Options{}) {
		t.Error("an unchanged program was linked again")
	}
	if marked(Options{Rebuild: true}) {
		t.Error("a rebuild that was asked for has linked nothing")
	}
	write(t, filepath.Join(dir, "cmd/hello/main.go"), strings.Replace(hello, "hello", "changed", 1))
	if marked(Options{}) {
		t.Error("a changed program was not linked")
	}
}

// BenchmarkUnchangedTree is the image step of a test run in which nothing has
// changed: the fleet's own programs and the NATS server.
//
//	go test -run '^$' -bench UnchangedTree -benchtime 5x ./e2e/image/
func BenchmarkUnchangedTree(b *testing.B) {
	programs := []Program{{Name: "nats-server", Package: "github.com/nats-io/nats-server/v2"}}
	for _, name := range []string{"fleet-agent", "fleet-callout", "fleet-oidc"} {
		programs = append(programs, Program{Name: name, Package: "./cmd/" + name})
	}
	o := Options{Dir: "../..", CacheDir: b.TempDir()}
	step := func() {
		if _, err := Build(b.Context(), o, programs...); err != nil {
			b.Fatal(err)
		}
	}
	step()
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		step()
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "s-median")
	b.ReportMetric(took[len(took)-1].Seconds(), "s-worst")
}

func TestImageStaysTheSameWhenTheProgramIsBuiltAgain(t *testing.T) {
	dir, cache := module(t, hello), t.TempDir()
	img := build(t, Options{Dir: dir, CacheDir: cache}, program)
	write(t, filepath.Join(dir, "cmd/hello/main.go"), strings.Replace(hello, "hello", "a longer text than before", 1))
	build(t, Options{Dir: dir, CacheDir: cache}, program)
	var archive bytes.Buffer
	if err := img.WriteArchive(&archive); err != nil {
		t.Fatal(err)
	}
	checkBlobs(t, &archive)
}

// checkBlobs wants every blob of the archive to be what its name says, and returns
// all files.
func checkBlobs(t *testing.T, archive io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = content
		if digest, ok := strings.CutPrefix(header.Name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("blob %s has another content", digest)
			}
		}
	}
}

func TestArchiveIsALayoutWithTheName(t *testing.T) {
	p := program
	p.Files = map[string][]byte{"/etc/hello/config.toml": []byte("x = 1\n"), "/etc/hello/more": nil}
	img := build(t, Options{Dir: module(t, hello), CacheDir: t.TempDir()}, p)
	var archive bytes.Buffer
	if err := img.As("example.test/other:1").WriteArchive(&archive); err != nil {
		t.Fatal(err)
	}
	files := checkBlobs(t, &archive)
	var index v1.IndexManifest
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	entry := index.Manifests[0]
	for _, key := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} {
		if entry.Annotations[key] != "example.test/other:1" {
			t.Errorf("annotation %s is %q", key, entry.Annotations[key])
		}
	}
	if entry.Digest.String() != img.Digest() {
		t.Errorf("index has %s, the image is %s", entry.Digest, img.Digest())
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(files["blobs/sha256/"+entry.Digest.Hex], &manifest); err != nil {
		t.Fatal(err)
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(files["blobs/sha256/"+manifest.Config.Digest.Hex], &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != user || config.Config.Entrypoint[0] != "/hello" {
		t.Errorf("config %+v", config.Config)
	}
	inLayer := map[string]tar.Header{}
	for r := tar.NewReader(bytes.NewReader(files["blobs/sha256/"+manifest.Layers[0].Digest.Hex])); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.ModTime.Unix() != 0 || header.Uid != 0 {
			t.Errorf("%s has time %v and owner %d", header.Name, header.ModTime, header.Uid)
		}
		inLayer[header.Name] = *header
	}
	for name, mode := range map[string]int64{"hello": 0o555, "tmp/": 0o1777, "etc/": 0o755, "etc/hello/": 0o755, "etc/hello/config.toml": 0o444, "etc/hello/more": 0o444} {
		if header, ok := inLayer[name]; !ok || header.Mode != mode {
			t.Errorf("%s: in the layer %v, mode %o, want %o", name, ok, header.Mode, mode)
		}
	}
}

func TestPushWritesOnce(t *testing.T) {
	var uploads atomic.Int64
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			uploads.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/team"
	img := build(t, Options{Dir: module(t, hello), CacheDir: t.TempDir()}, program)
	pushed, err := img.Push(t.Context(), repository, PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(pushed.Ref(), repository+"/hello:sha256-") {
		t.Errorf("name %s", pushed.Ref())
	}
	ref, err := name.ParseReference(pushed.Ref())
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := pulled.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Compressed() // as it is in the registry
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if _, err := io.Copy(io.Discard, content); err != nil { // checks the digest
		t.Error(err)
	}
	if digest, err := pulled.Digest(); err != nil || digest.String() != img.Digest() {
		t.Errorf("pulled %s, %v", digest, err)
	}
	before := uploads.Load()
	if _, err := img.Push(t.Context(), repository, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := uploads.Load() - before; n != 0 {
		t.Errorf("pushing again wrote %d times", n)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	broken := module(t, "package main\n\nfunc main() { undefined() }\n")
	empty := t.TempDir()
	for _, c := range []struct {
		name string
		try  func(ctx context.Context) error
		want string
	}{
		{"source does not compile", func(ctx context.Context) error {
			_, err := Build(ctx, Options{Dir: broken, CacheDir: t.TempDir()}, program)
			return err
		}, "undefined: undefined"},
		{"bad name", func(ctx context.Context) error {
			_, err := Build(ctx, Options{}, Program{Name: "Hello", Package: "."})
			return err
		}, "lower case letters"},
		{"same binary name", func(ctx context.Context) error {
			_, err := Build(ctx, Options{CacheDir: t.TempDir()}, Program{Name: "a", Package: "./x/cmd"}, Program{Name: "b", Package: "./y/cmd"})
			return err
		}, "is called cmd too"},
		{"no go command", func(ctx context.Context) error {
			path := os.Getenv("PATH")
			if err := os.Setenv("PATH", empty); err != nil {
				return err
			}
			defer os.Setenv("PATH", path) //nolint:errcheck // it was set before
			_, err := Build(ctx, Options{CacheDir: t.TempDir()}, program)
			return err
		}, "install Go 1.26"},
		{"bad file", func(ctx context.Context) error {
			_, err := Build(ctx, Options{Dir: module(t, hello), CacheDir: t.TempDir()}, Program{Name: "hello", Package: "./cmd/hello", Files: map[string][]byte{"../x": nil}})
			return err
		}, "clean absolute path"},
		{"registry is not there", func(ctx context.Context) error {
			img := build(t, Options{Dir: module(t, hello), CacheDir: t.TempDir()}, program)
			_, err := img.Push(ctx, "127.0.0.1:1/x", PushOptions{})
			return err
		}, "is the registry up"},
		{"no repository", func(ctx context.Context) error {
			img := build(t, Options{Dir: module(t, hello), CacheDir: t.TempDir()}, program)
			_, err := img.Push(ctx, "not a registry", PushOptions{})
			return err
		}, "is no registry or repository"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.try(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestExecutableName(t *testing.T) {
	for pkg, want := range map[string]string{
		"./cmd/fleet-agent":                    "fleet-agent",
		"github.com/nats-io/nats-server/v2":    "nats-server",
		"github.com/nats-io/nats-server/v2/x1": "x1",
		"example.test/v2":                      "example.test",
	} {
		if got := executableName(pkg); got != want {
			t.Errorf("%s: got %s, want %s", pkg, got, want)
		}
	}
}

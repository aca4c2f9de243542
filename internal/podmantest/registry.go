//go:build linux

package podmantest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Registry serves an image registry at [RegistryAddress] until the test ends.
// around, if not nil, wraps its handler, for faults.
func (p *Podman) Registry(t testing.TB, around func(http.Handler) http.Handler) {
	t.Helper()
	l, err := p.Listen("tcp", RegistryAddress)
	if err != nil {
		t.Fatal(err)
	}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if around != nil {
		handler = around(handler)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
}

// Push puts an image that runs the probe into the registry, as
// RegistryAddress/repository:tag; label makes images differ. It returns the
// digest of its manifest.
func (p *Podman) Push(t testing.TB, repository, label string) string {
	t.Helper()
	data, err := Layer()
	if err != nil {
		t.Fatal(err)
	}
	return p.push(t, repository, label, data)
}

// PushLarge is Push of an image with a file of so many bytes beside the probe.
func (p *Podman) PushLarge(t testing.TB, repository string, size int) {
	t.Helper()
	data, err := Layer()
	if err != nil {
		t.Fatal(err)
	}
	var large bytes.Buffer
	w := tar.NewWriter(&large)
	err = w.WriteHeader(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)})
	if err == nil {
		_, err = w.Write(make([]byte, size))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	p.push(t, repository, "large", data, large.Bytes())
}

func (p *Podman) push(t testing.TB, repository, label string, data ...[]byte) string {
	t.Helper()
	var layers []v1.Layer
	for _, d := range data {
		layers = append(layers, static.NewLayer(d, types.DockerUncompressedLayer))
	}
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err == nil {
		image, err = mutate.Config(image, v1.Config{Entrypoint: []string{"/probe"}, Labels: map[string]string{"label": label}})
	}
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(RegistryAddress+"/"+repository, name.Insecure)
	if err == nil {
		err = remote.Write(ref, image, remote.WithTransport(p.Transport()))
	}
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

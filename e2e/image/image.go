package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is whom the program runs as unless the Pod says otherwise. It is a number
// because the kubelet must see that it is not root, and it may be any other: no
// file in the image belongs to it.
const user = "65532:65532"

// Image is an image of one program. It holds the binary's file open until it is
// garbage, so it stays the same when the program is built again meanwhile.
type Image struct {
	name   string // of the program
	ref    string
	digest v1.Hash
	image  v1.Image
}

// Ref is the full name of the image, its digest being the tag.
func (i *Image) Ref() string { return i.ref }

// As returns the image under another full name. Package users need it where a name
// must be known before the image is made; an image loaded under a name that says
// nothing of its content is not replaced when that changes.
func (i *Image) As(ref string) *Image {
	other := *i
	other.ref = ref
	return &other
}

// Name is the name of the program.
func (i *Image) Name() string { return i.name }

// Digest is that of the image's manifest, "sha256:…".
func (i *Image) Digest() string { return i.digest.String() }

// fromBinary makes the image of p, whose binary is the file of that path.
func fromBinary(o Options, p Program, binary string) (*Image, error) {
	layer, err := newLayer(p, binary)
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", p.Name, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.AppendLayers(img, layer)
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", p.Name, err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS:           "linux",
		Architecture: o.Arch,
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layer.digest}},
		Config:       v1.Config{User: user, Entrypoint: []string{"/" + p.Name}, WorkingDir: "/"},
	})
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", p.Name, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", p.Name, err)
	}
	return &Image{
		name:   p.Name,
		ref:    o.Host + "/" + p.Name + ":" + tag(digest),
		digest: digest,
		image:  img,
	}, nil
}

// tag makes a digest a tag, in which a colon is not allowed.
func tag(digest v1.Hash) string { return digest.Algorithm + "-" + digest.Hex }

// layer is an uncompressed layer that is put together while it is read: it is only
// ever read from this machine, where compressing costs more than it saves.
type layer struct {
	parts  []io.ReaderAt // one after the other
	sizes  []int64
	size   int64
	digest v1.Hash // also of the content, since it is not compressed
}

// newLayer returns the layer with p's binary and files, and a /tmp.
func newLayer(p Program, binary string) (*layer, error) {
	file, err := os.Open(binary)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", binary)
	}

	l := &layer{}
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	directory := func(name string, mode int64) error {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Format: tar.FormatUSTAR})
	}
	if err := directory("tmp/", 0o1777); err != nil {
		return nil, err
	}
	paths := make([]string, 0, len(p.Files))
	for name := range p.Files {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/"+p.Name {
			return nil, fmt.Errorf("file %q: want a clean absolute path, and not the binary's", name)
		}
		paths = append(paths, name)
	}
	slices.Sort(paths)
	made := map[string]bool{"/": true, "/tmp": true}
	for _, name := range paths {
		for _, parent := range parents(name) {
			if made[parent] {
				continue
			}
			made[parent] = true
			if err := directory(parent[1:]+"/", 0o755); err != nil {
				return nil, err
			}
		}
		content := p.Files[name]
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: 0o444, Size: int64(len(content)), Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p.Name, Mode: 0o555, Size: info.Size(), Format: tar.FormatUSTAR}); err != nil {
		return nil, err
	}
	l.add(bytes.NewReader(head.Bytes()), int64(head.Len()))
	l.add(file, info.Size())
	// The binary is filled up to whole blocks, and two empty blocks end the archive.
	end := (512-info.Size()%512)%512 + 2*512
	l.add(bytes.NewReader(make([]byte, end)), end)

	sum := sha256.New()
	if n, err := io.Copy(sum, l.reader()); err != nil || n != l.size {
		return nil, errors.Join(fmt.Errorf("read %s: %d bytes of %d", binary, n, l.size), err)
	}
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	return l, nil
}

// parents returns the directories above name, the outermost first.
func parents(name string) []string {
	var list []string
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		list = append(list, dir)
	}
	slices.Reverse(list)
	return list
}

func (l *layer) add(part io.ReaderAt, size int64) {
	l.parts, l.sizes, l.size = append(l.parts, part), append(l.sizes, size), l.size+size
}

func (l *layer) reader() io.Reader {
	readers := make([]io.Reader, 0, len(l.parts))
	for i, part := range l.parts {
		readers = append(readers, io.NewSectionReader(part, 0, l.sizes[i]))
	}
	return io.MultiReader(readers...)
}

// What follows makes layer a v1.Layer.

func (l *layer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return io.NopCloser(l.reader()), nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return io.NopCloser(l.reader()), nil }
func (l *layer) Size() (int64, error)                 { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

var _ v1.Layer = (*layer)(nil)

// WriteArchive writes the image as a tarred OCI image layout. The layout's index
// carries the full name in both places where containerd and others look for one.
func (i *Image) WriteArchive(w io.Writer) error {
	if err := i.writeArchive(w); err != nil {
		return fmt.Errorf("write image %s: %w", i.ref, err)
	}
	return nil
}

func (i *Image) writeArchive(w io.Writer) error {
	manifest, err := i.image.RawManifest()
	if err != nil {
		return err
	}
	config, err := i.image.RawConfigFile()
	if err != nil {
		return err
	}
	configDigest, err := i.image.ConfigName()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1,
			Size:      int64(len(manifest)),
			Digest:    i.digest,
			Annotations: map[string]string{
				"io.containerd.image.name":          i.ref,
				"org.opencontainers.image.ref.name": i.ref,
			},
		}},
	})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	file := func(name string, size int64, content io.Reader) error {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: size, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := io.Copy(archive, content)
		return err
	}
	blob := func(digest v1.Hash, content []byte) error {
		return file("blobs/sha256/"+digest.Hex, int64(len(content)), bytes.NewReader(content))
	}
	const version = `{"imageLayoutVersion":"1.0.0"}`
	if err := file("oci-layout", int64(len(version)), strings.NewReader(version)); err != nil {
		return err
	}
	if err := file("index.json", int64(len(index)), bytes.NewReader(index)); err != nil {
		return err
	}
	if err := blob(i.digest, manifest); err != nil {
		return err
	}
	if err := blob(configDigest, config); err != nil {
		return err
	}
	layers, err := i.image.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		size, err := l.Size()
		if err != nil {
			return err
		}
		content, err := l.Compressed()
		if err != nil {
			return err
		}
		err = file("blobs/sha256/"+digest.Hex, size, content)
		content.Close()
		if err != nil {
			return err
		}
	}
	return archive.Close()
}

// PushOptions say how a registry is talked to.
type PushOptions struct {
	// Insecure allows plain HTTP. Registries on loopback never need it.
	Insecure bool
	// Transport makes the requests; nil means remote.DefaultTransport.
	Transport http.RoundTripper
}

// Push puts the image into a registry under <repository>/<program>:<tag>, unless it
// is there, and returns an Image with that name. Credentials come from where
// `docker login` and `podman login` put them.
func (i *Image) Push(ctx context.Context, repository string, o PushOptions) (*Image, error) {
	full := strings.TrimSuffix(repository, "/") + "/" + i.name + ":" + tag(i.digest)
	var options []name.Option
	if o.Insecure {
		options = append(options, name.Insecure)
	}
	ref, err := name.NewTag(full, append(options, name.StrictValidation)...)
	if err != nil {
		return nil, fmt.Errorf("push image %s: %q is no registry or repository: %w", i.name, repository, err)
	}
	if o.Transport == nil {
		o.Transport = remote.DefaultTransport
	}
	with := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(o.Transport)}
	there, err := remote.Head(ref, with...)
	var failure *transport.Error
	switch {
	case err == nil && there.Digest == i.digest:
	case err == nil, errors.As(err, &failure) && failure.StatusCode == http.StatusNotFound:
		if err := remote.Write(ref, i.image, with...); err != nil {
			return nil, fmt.Errorf("push image %s: %w: is the registry up, and are you logged in to it (podman login)?", full, err)
		}
	default:
		return nil, fmt.Errorf("push image %s: %w: is the registry up, and are you logged in to it (podman login)?", full, err)
	}
	pushed := *i
	pushed.ref = full
	return &pushed, nil
}

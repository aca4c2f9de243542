// Package image makes container images of Go programs without a container engine,
// a base image or a registry:
//
//	images, err := image.Build(ctx, image.Options{Dir: root},
//		image.Program{Name: "fleet-agent", Package: "./cmd/fleet-agent"},
//		image.Program{Name: "nats-server", Package: "github.com/nats-io/nats-server/v2"},
//	)
//	err = cluster.LoadImages(ctx, images[0], images[1])    // or images[0].Push(ctx, …)
//	pod.Spec.Containers[0].Image = images[0].Ref()
//
// An image is one static binary in one layer, with times of zero, and its tag is
// its digest. So the same source gives the same image under the same name, a
// cluster that has it needs nothing, and a change of source cannot be missed.
// What is out of date is decided by `go build`, which builds nothing then and does
// not link.
package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Options say where and how programs are built.
type Options struct {
	// Dir is a directory in the module that the programs are built in; empty means
	// the working directory.
	Dir string

	// Host is the first part of the images' names; empty means DefaultHost. It need
	// not exist where images are loaded and not pulled.
	Host string

	// Arch is the processor architecture, as GOARCH; empty means this machine's.
	Arch string

	// LinkerFlags are added to -s -w, "-X main.version=1.2" for example. A flag that
	// changes with every build makes a new image each time.
	LinkerFlags string

	// CacheDir keeps the binaries, so that an unchanged one is not linked again;
	// empty means harmony-fleet in the user's cache directory.
	CacheDir string

	// Rebuild links the programs again even where nothing has changed.
	Rebuild bool
}

// DefaultHost is the first part of images' names.
const DefaultHost = "harmony-fleet.local"

// Program is one program and the image made of it.
type Program struct {
	// Name is the name of image and binary, such as fleet-agent.
	Name string

	// Package is a main package: a path with ./ below Options.Dir, or an import
	// path of the module or of one that it requires.
	Package string

	// Files are put into the image besides the binary, by absolute path, readable
	// by everyone; nil means none.
	Files map[string][]byte
}

var programName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// Build builds the programs and returns their images in the same order.
func Build(ctx context.Context, o Options, programs ...Program) ([]*Image, error) {
	if len(programs) == 0 {
		return nil, nil
	}
	if o.Host == "" {
		o.Host = DefaultHost
	}
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if o.CacheDir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, errors.New("build images: no cache directory: set HOME or XDG_CACHE_HOME")
		}
		o.CacheDir = filepath.Join(base, "harmony-fleet")
	}
	for _, p := range programs {
		if !programName.MatchString(p.Name) {
			return nil, fmt.Errorf("build image %q: want a name of lower case letters, digits and single . _ - between them", p.Name)
		}
	}
	binaries, err := compile(ctx, o, programs)
	if err != nil {
		return nil, err
	}
	images, errs := make([]*Image, len(programs)), make([]error, len(programs))
	var wg sync.WaitGroup // hashing is most of what there is to do in an unchanged tree
	for i, p := range programs {
		wg.Go(func() { images[i], errs[i] = fromBinary(o, p, binaries[i]) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return images, nil
}

// FromBinary returns the image of a static Linux binary that exists already.
// Options.Dir, LinkerFlags and CacheDir mean nothing to it.
func FromBinary(o Options, name, binary string) (*Image, error) {
	if o.Host == "" {
		o.Host = DefaultHost
	}
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	return fromBinary(o, Program{Name: name}, binary)
}

// compile builds all programs with one go command, which loads the module once, and
// returns the paths of the binaries.
func compile(ctx context.Context, o Options, programs []Program) ([]string, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	// The folder's name stands for what the go command does not compare when it
	// looks whether a binary is up to date.
	key := sha256.Sum256([]byte(strings.Join([]string{dir, o.Arch, o.LinkerFlags}, "\x00")))
	out := filepath.Join(o.CacheDir, "images", hex.EncodeToString(key[:8]))
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w " + o.LinkerFlags), "-o", out + string(filepath.Separator)}
	var packages, binaries []string
	for _, p := range programs {
		binary := filepath.Join(out, executableName(p.Package))
		if slices.Contains(binaries, binary) {
			return nil, fmt.Errorf("build image %s: another program's binary is called %s too: build it with a call of its own", p.Name, filepath.Base(binary))
		}
		if o.Rebuild {
			if err := os.Remove(binary); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("build image %s: %w", p.Name, err)
			}
		}
		packages, binaries = append(packages, p.Package), append(binaries, binary)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+o.Arch)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("build images: the go command is not on PATH: install Go 1.26 or newer")
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("build images: %w", ctx.Err())
		}
		return nil, fmt.Errorf("build images: go build %s in %s: %w:\n%s", strings.Join(packages, " "), dir, err, output.Bytes())
	}
	return binaries, nil
}

var majorVersion = regexp.MustCompile(`^v[0-9]+$`)

// executableName is what the go command calls the binary of a package: the last
// part of its path that is not a major version.
func executableName(pkg string) string {
	last := path.Base(pkg)
	if majorVersion.MatchString(last) && path.Dir(pkg) != "." {
		last = path.Base(path.Dir(pkg))
	}
	return last
}

package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
)

// kubernetesVersion is what the module in the folder kube requires; the binary
// would otherwise say v0.0.0.
const kubernetesVersion = "v1.34.4"

// buildFlags build what the folder kube holds. They are part of the cache's key.
func buildFlags() []string {
	const version = "k8s.io/component-base/version."
	major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	return []string{"-trimpath", "-buildvcs=false", "-ldflags", strings.Join([]string{
		"-s -w",
		"-X " + version + "gitVersion=" + kubernetesVersion,
		"-X " + version + "gitMajor=" + major,
		"-X " + version + "gitMinor=" + minor,
		"-X k8s.io/client-go/pkg/version.gitVersion=" + kubernetesVersion,
	}, " ")}
}

// binaries are the programs that a cluster is made of, in the cache.
type binaries struct{ kube, pause string }

// unusedFor is how long a build stays in the cache when nothing uses it.
const unusedFor = 30 * 24 * time.Hour

// build returns the binaries that a cluster runs, and builds them first unless the
// cache has them. That takes minutes, and happens once for each state of the sources.
func build(ctx context.Context, o Options) (binaries, error) {
	const notice = "building Kubernetes " + kubernetesVersion + ", once; this takes 5 to 20 minutes"
	entry, err := cached(ctx, o, "kube", notice, map[string]string{"pause": "./pause", "kube": "."})
	return binaries{kube: filepath.Join(entry, "kube"), pause: filepath.Join(entry, "pause")}, err
}

// KubeBinary returns the program that is every component of the control plane: its
// first argument names the one that it becomes (etcd, kube-apiserver, …). It is built
// first unless the cache has it, which takes minutes. Only CacheDir, Source and
// Progress of o count. It is for who needs an API server and no node.
func KubeBinary(ctx context.Context, o Options) (string, error) {
	o, err := o.withDefaults()
	if err != nil {
		return "", err
	}
	b, err := build(ctx, o)
	return b.kube, err
}

// buildKubectl returns the path of kubectl, built the first time it is asked for.
func buildKubectl(ctx context.Context, o Options) (string, error) {
	const notice = "building kubectl " + kubernetesVersion + ", once; this takes a minute or two"
	entry, err := cached(ctx, o, "kubectl", notice, map[string]string{"kubectl": "./kubectl"})
	return filepath.Join(entry, "kubectl"), err
}

// cached returns the folder in the cache with the given binaries, each from a
// package of the module. notice tells a person why nothing happens for a while.
func cached(ctx context.Context, o Options, name, notice string, packages map[string]string) (string, error) {
	source, err := findSource(ctx, o.Source)
	if err != nil {
		return "", err
	}
	key, err := sourceKey(ctx, source)
	if err != nil {
		return "", err
	}
	cache := filepath.Join(o.CacheDir, "kube")
	entry := filepath.Join(cache, name+"-"+key)
	complete := func() bool {
		_, err := os.Stat(entry)
		return err == nil
	}
	if complete() {
		now := time.Now()
		_ = os.Chtimes(entry, now, now) // at worst it is built again some day
		return entry, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("local cluster: make cache: %w", err)
	}
	unlock, err := filelock.Wait(ctx, entry+".lock")
	if err != nil {
		return "", fmt.Errorf("local cluster: wait for another build: %w", err)
	}
	defer unlock()
	if complete() {
		return entry, nil // somebody else built it meanwhile
	}

	fmt.Fprintln(o.Progress, notice)
	begin := time.Now()
	temp, err := os.MkdirTemp(cache, ".build-")
	if err != nil {
		return "", fmt.Errorf("local cluster: make cache: %w", err)
	}
	defer os.RemoveAll(temp)
	for binary, pkg := range packages {
		if err := goBuild(ctx, source, filepath.Join(temp, binary), pkg); err != nil {
			return "", err
		}
	}
	if err := errors.Join(os.Chmod(temp, 0o755), os.Rename(temp, entry)); err != nil {
		return "", fmt.Errorf("local cluster: fill cache: %w", err)
	}
	fmt.Fprintf(o.Progress, "built in %v\n", time.Since(begin).Round(time.Second))
	removeUnused(cache)
	return entry, nil
}

// removeUnused removes builds that nothing has used for long, and those that were
// broken off.
func removeUnused(cache string) {
	entries, _ := os.ReadDir(cache) // what cannot be listed stays
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) > unusedFor {
			_ = os.RemoveAll(filepath.Join(cache, e.Name()))
		}
	}
}

func goBuild(ctx context.Context, source, binary, pkg string) error {
	args := append([]string{"build"}, buildFlags()...)
	output, err := goCommand(ctx, source, append(args, "-o", binary, pkg)...)
	if err != nil {
		return fmt.Errorf("local cluster: build %s in %s: %w: %s", pkg, source, err, output)
	}
	return nil
}

func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", errors.New("the go command is not on PATH: install Go 1.26 or newer")
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return strings.TrimSpace(stderr.String()), err
	}
	return strings.TrimSpace(stdout.String()), nil
}

const (
	mainModule = "github.com/harmony-fleet/fleet"
	kubeFolder = "e2e/cluster/local/kube" // in the main module's folder, though not in the module
)

// findSource returns the folder of the module that the binaries are built from.
func findSource(ctx context.Context, named string) (string, error) {
	var candidates []string
	if named != "" {
		candidates = append(candidates, named)
	} else {
		if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) { // relative with -trimpath
			candidates = append(candidates, filepath.Join(filepath.Dir(file), "kube"))
		}
		if dir, err := goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", mainModule); err == nil && dir != "" {
			candidates = append(candidates, filepath.Join(dir, kubeFolder))
		}
	}
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Abs(dir)
		}
	}
	return "", fmt.Errorf("local cluster: the sources of its binaries (folder %s) are not in %q: run this in a checkout of %s, or name the folder", kubeFolder, candidates, mainModule)
}

// sourceKey names the build: the same sources, flags and Go version, the same name.
func sourceKey(ctx context.Context, source string) (string, error) {
	version, err := goCommand(ctx, source, "env", "GOVERSION")
	if err != nil {
		return "", fmt.Errorf("local cluster: ask for the version of Go: %w", err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s %q\n", version, runtime.GOARCH, buildFlags())
	err = filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name := d.Name(); name != "go.mod" && name != "go.sum" && filepath.Ext(name) != ".go" {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%s %d\n", rel, len(content))
		sum.Write(content)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("local cluster: read sources: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:12]), nil
}

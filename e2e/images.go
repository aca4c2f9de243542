package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
)

// programs are those whose images a stack needs.
func (o *Options) programs() []image.Program {
	list := append([]image.Program{programNATS}, o.AgentTarget.programs()...)
	if o.AuthMode == Callout {
		list = append(append(list, programCallout), o.Issuer.programs()...)
	}
	for _, c := range o.Components {
		if !slices.ContainsFunc(list, func(p image.Program) bool { return p.Name == c.Program.Name }) {
			list = append(list, c.Program)
		}
	}
	return list
}

// built keeps the images that this process has made: all its stacks run the source
// as it was when the first of them came up.
var built struct {
	sync.Mutex
	images map[string]*image.Image // by directory, registry and program
	forced bool                    // ForceRebuild was done
}

// buildImages builds what has not been built by this process.
func buildImages(ctx context.Context, o *Options) (map[string]*image.Image, error) {
	dir := o.hooks.dir
	if dir == "" {
		var err error
		if dir, err = moduleRoot(); err != nil {
			return nil, err
		}
	}
	built.Lock()
	defer built.Unlock()
	if built.images == nil {
		built.images = map[string]*image.Image{}
	}
	if o.ForceRebuild && !built.forced {
		clear(built.images)
	}
	key := func(p image.Program) string { return dir + "\x00" + o.Registry + "\x00" + p.Name + "\x00" + p.Package }
	all := o.programs()
	var missing []image.Program
	for _, p := range all {
		if built.images[key(p)] == nil || p.Files != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		unlock, err := lockBuild(ctx)
		if err != nil {
			return nil, err
		}
		defer unlock()
		made, err := image.Build(ctx, image.Options{Dir: dir, Host: o.Registry, Rebuild: o.ForceRebuild}, missing...)
		if err != nil {
			return nil, err
		}
		for i, p := range missing {
			built.images[key(p)] = made[i]
		}
	}
	built.forced = built.forced || o.ForceRebuild
	images := map[string]*image.Image{}
	for _, p := range all {
		images[p.Name] = built.images[key(p)]
	}
	return images, nil
}

// provideImages makes the images available to the cluster, by its registry where it
// has one, and gives their names by program.
func provideImages(ctx context.Context, c cluster.Cluster, images map[string]*image.Image) (map[string]string, error) {
	refs := map[string]string{}
	var list []cluster.Image
	for name, img := range images {
		refs[name] = img.Ref()
		list = append(list, img)
	}
	return refs, c.LoadImages(ctx, list...)
}

// together calls all of them at once and waits for all.
func together(list ...func() error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, f := range list {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// allOrFirst calls all of them at once and waits for all. The first to fail ends the
// others, and is the one that is returned.
func allOrFirst(ctx context.Context, list ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, f := range list {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// lockBuild keeps other processes from building into the same cache meanwhile.
func lockBuild(ctx context.Context) (unlock func(), err error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, errors.New("build images: no cache directory: set HOME or XDG_CACHE_HOME")
	}
	dir := filepath.Join(base, "harmony-fleet")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	unlock, err = filelock.Wait(ctx, filepath.Join(dir, "build.lock"))
	if err != nil {
		return nil, fmt.Errorf("build images: wait for another build in %s: %w", dir, err)
	}
	return unlock, nil
}

const modulePath = "github.com/harmony-fleet/fleet"

// moduleRoot is the directory of this module's source: beside this file, or above
// the working directory.
func moduleRoot() (string, error) {
	var from []string
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		from = append(from, filepath.Dir(file))
	}
	if wd, err := os.Getwd(); err == nil {
		from = append(from, wd)
	}
	for _, dir := range from {
		for ; ; dir = filepath.Dir(dir) {
			mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(mod), "module "+modulePath+"\n") {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("build images: the source of %s was not found: run this in a checkout of it", modulePath)
}

package provider

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/image"
)

// registry is one, or a repository in it, that images are pushed to.
type registry struct {
	prefix   string // of image names, without a slash at its end
	registry name.Registry
}

func newRegistry(prefix string) (*registry, error) {
	prefix = strings.TrimSuffix(prefix, "/")
	// The name of any image in it says whether it is well formed.
	ref, err := name.NewTag(prefix+"/image:tag", name.StrictValidation)
	if err == nil && strings.Contains(prefix, "://") {
		err = errors.New("it is a URL")
	}
	if err != nil {
		return nil, fmt.Errorf("registry %q: want host, host:port or host/repository, without http://: %w", prefix, err)
	}
	return &registry{prefix: prefix, registry: ref.Registry}, nil
}

func (r *registry) host() string { return r.registry.RegistryStr() }

// plainHTTP says whether the images are pushed without TLS.
func (r *registry) plainHTTP() bool { return r.registry.Scheme() == "http" }

// pusher is an image that can be pushed, as those of package image can.
type pusher interface {
	Push(ctx context.Context, repository string, o image.PushOptions) (*image.Image, error)
}

var _ pusher = (*image.Image)(nil)

// push pushes all images at once, those that are not there.
func (r *registry) push(ctx context.Context, images []cluster.Image) error {
	errs := make([]error, len(images))
	var wg sync.WaitGroup
	for i, img := range images {
		p, ok := img.(pusher)
		if !ok || !strings.HasPrefix(img.Ref(), r.prefix+"/") {
			errs[i] = fmt.Errorf("push image %s: its name does not begin with that of the registry %s: build it with image.Options{Host: %[2]q}", img.Ref(), r.prefix)
			continue
		}
		wg.Go(func() {
			repository := img.Ref()[:strings.LastIndex(img.Ref(), "/")]
			pushed, err := p.Push(ctx, repository, image.PushOptions{})
			if err == nil && pushed.Ref() != img.Ref() {
				err = fmt.Errorf("push image %s: it is called %s in the registry: do not rename it", img.Ref(), pushed.Ref())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pushing is a provider of clusters that pull their images.
type pushing struct {
	cluster.Provider
	registry *registry
}

func (p pushing) Up(ctx context.Context) (cluster.Cluster, error) {
	c, err := p.Provider.Up(ctx)
	if err != nil {
		return nil, err
	}
	return pulling{c, p.registry}, nil
}

// pulling is a cluster that pulls its images.
type pulling struct {
	cluster.Cluster
	registry *registry
}

// LoadImages pushes the images, and leaves out those that are in the registry.
func (p pulling) LoadImages(ctx context.Context, images ...cluster.Image) error {
	return p.registry.push(ctx, images)
}

// Package ctr puts images into a node's containerd by way of ctr, containerd's own
// client, wherever that runs:
//
//	node := ctr.Node(func(ctx context.Context, stdin io.Reader, args ...string) (string, error) { … })
//	err := node.Load(ctx, images...)
package ctr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/harmony-fleet/fleet/e2e/cluster"
)

// Node runs ctr with args in the namespace of Kubernetes (k8s.io), and returns what
// it wrote to stdout. stdin may be nil. An error carries what ctr wrote to stderr.
type Node func(ctx context.Context, stdin io.Reader, args ...string) (string, error)

// Load streams images into the node's containerd, all at once and uncompressed, and
// leaves out those that are there, complete and unpacked.
func (n Node) Load(ctx context.Context, images ...cluster.Image) error {
	errs := make([]error, len(images))
	var wg sync.WaitGroup
	for i, img := range images {
		wg.Go(func() {
			there, err := n.has(ctx, img.Ref())
			if err == nil && !there {
				err = n.Import(ctx, img.WriteArchive)
			}
			if err != nil {
				errs[i] = fmt.Errorf("load image %s: %w", img.Ref(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// has says whether the node can start ref without loading it.
func (n Node) has(ctx context.Context, ref string) (bool, error) {
	output, err := n(ctx, nil, "images", "check", "name=="+ref)
	if err != nil {
		return false, err
	}
	return usable(output, ref), nil
}

// usable says whether ref is listed as complete and unpacked in what
// `ctr images check` wrote.
func usable(output, ref string) bool {
	// REF TYPE DIGEST STATUS SIZE UNPACKED, STATUS being "complete (2/2)".
	for line := range strings.Lines(output) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[0] == ref {
			return fields[3] == "complete" && fields[len(fields)-1] == "true"
		}
	}
	return false
}

// Import gives what write writes to containerd: an archive as `podman save` and
// `docker save` make it, or a tarred OCI layout, under the names in it.
func (n Node) Import(ctx context.Context, write func(io.Writer) error) error {
	read, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(w)
		w.CloseWithError(err)
		written <- err
	}()
	_, err := n(ctx, read, "images", "import", "-")
	read.CloseWithError(errors.New("containerd has stopped reading")) // ends the writer
	if writeErr := <-written; err == nil {
		err = writeErr
	}
	return err
}

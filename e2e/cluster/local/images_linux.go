package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/image"
)

// pauseRef is the image that holds a Pod's namespaces. Its tag says nothing, since
// containerd has to know the name before the image is made.
const (
	pauseName = "pause"
	pauseRef  = image.DefaultHost + "/" + pauseName + ":local"
)

// loadPause loads the sandbox image as soon as containerd takes it.
func (c *Cluster) loadPause(ctx context.Context, pause *image.Image) error {
	awaitSocket(ctx, "unix", c.layout.containerdSocket())
	return c.LoadImages(ctx, pause.As(pauseRef))
}

// awaitSocket returns when something accepts connections at address, or ctx is
// done. That a socket's file exists says nothing: a killed process leaves it.
func awaitSocket(ctx context.Context, network, address string) {
	var d net.Dialer
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := d.DialContext(attempt, network, address)
		cancel()
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// LoadImages streams images into the node's containerd, all at once, and leaves out
// those that are there, complete and unpacked.
func (c *Cluster) LoadImages(ctx context.Context, images ...cluster.Image) error {
	errs := make([]error, len(images))
	var wg sync.WaitGroup
	for i, img := range images {
		wg.Go(func() {
			there, err := c.hasImage(ctx, img.Ref())
			if err == nil && !there {
				err = c.importArchive(ctx, img.WriteArchive)
			}
			if err != nil {
				errs[i] = fmt.Errorf("load image %s: %w", img.Ref(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// LoadArchive loads the images of an archive, as `podman save` and `docker save`
// write it, or a tarred OCI layout, under the names in it.
func (c *Cluster) LoadArchive(ctx context.Context, archive io.Reader) error {
	return c.importArchive(ctx, func(w io.Writer) error {
		_, err := io.Copy(w, archive)
		return err
	})
}

// hasImage says whether the node can start ref without loading it.
func (c *Cluster) hasImage(ctx context.Context, ref string) (bool, error) {
	output, err := c.ctr(ctx, nil, "images", "check", "name=="+ref)
	if err != nil {
		return false, err
	}
	// REF TYPE DIGEST STATUS SIZE UNPACKED, STATUS being "complete (2/2)".
	for line := range strings.Lines(output) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[0] == ref {
			return fields[3] == "complete" && fields[len(fields)-1] == "true", nil
		}
	}
	return false, nil
}

// importArchive gives what write writes to containerd.
func (c *Cluster) importArchive(ctx context.Context, write func(io.Writer) error) error {
	read, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(w)
		w.CloseWithError(err)
		written <- err
	}()
	_, err := c.ctr(ctx, read, "images", "import", "-")
	read.CloseWithError(errors.New("containerd has stopped reading")) // ends the writer
	if writeErr := <-written; err == nil {
		err = writeErr
	}
	return err
}

// ctr runs containerd's own client, which is always of its version.
func (c *Cluster) ctr(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", c.layout.containerdSocket(), "--namespace", "k8s.io"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

package local

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/e2e/cluster"
	"github.com/harmony-fleet/fleet/e2e/cluster/internal/ctr"
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
	return ctr.Node(c.ctr).Load(ctx, images...)
}

// LoadArchive loads the images of an archive, as `podman save` and `docker save`
// write it, or a tarred OCI layout, under the names in it.
func (c *Cluster) LoadArchive(ctx context.Context, archive io.Reader) error {
	return ctr.Node(c.ctr).Import(ctx, func(w io.Writer) error {
		_, err := io.Copy(w, archive)
		return err
	})
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

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/docker/api/types/image"
)

// Image is an image that the engine has.
type Image struct {
	ID     string
	Digest string // of the manifest, "sha256:…"; empty where it never was in a registry
}

// Image finds an image by name, digest or id; [ErrNotFound] where it is not
// there.
func (e *Engine) Image(ctx context.Context, ref string) (Image, error) {
	api, err := e.api(ctx)
	if err != nil {
		return Image{}, err
	}
	i, err := api.ImageInspect(ctx, ref)
	if err != nil {
		return Image{}, e.fault(err, "image "+ref)
	}
	found := Image{ID: i.ID}
	for _, d := range i.RepoDigests {
		if _, digest, ok := strings.Cut(d, "@"); ok {
			found.Digest = digest
			break
		}
	}
	return found, nil
}

// Progress is how far a pull is.
type Progress struct {
	Text       string // what the engine last said
	Done, Size int64  // bytes of all layers seen so far; 0 where the engine does not tell
}

// pullStall is how long a pull may say nothing before it is given up.
const pullStall = 5 * time.Minute

// Pull gets an image from its registry. progress, if not nil, is called often,
// from this goroutine.
func (e *Engine) Pull(ctx context.Context, ref string, progress func(Progress)) error {
	what := "pull image " + ref
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(pullStall, func() { cancel(fmt.Errorf("no progress for %v", pullStall)) })
	defer stall.Stop()
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	stream, err := api.ImagePull(ctx, ref, image.PullOptions{})
	if err != nil {
		return e.fault(pullCause(ctx, err), what)
	}
	defer stream.Close()
	err = readPull(stream, func(p Progress) {
		stall.Reset(pullStall)
		if progress != nil {
			progress(p)
		}
	})
	return e.fault(pullCause(ctx, err), what)
}

func pullCause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// maxPullMessage bounds one message of a pull, in bytes.
const maxPullMessage = 1 << 20

// readPull reads the messages of a pull to the end. An error among them is the
// pull's.
func readPull(r io.Reader, progress func(Progress)) error {
	type bytes struct{ done, size int64 }
	layers := map[string]bytes{}
	limited := &io.LimitedReader{R: r, N: maxPullMessage}
	dec := json.NewDecoder(limited)
	for {
		var m struct {
			Status   string `json:"status"`
			Stream   string `json:"stream"`
			ID       string `json:"id"`
			Progress struct {
				Current int64 `json:"current"`
				Total   int64 `json:"total"`
			} `json:"progressDetail"`
			Error string `json:"error"`
		}
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF) && limited.N > 0:
			return nil
		case err != nil:
			return fmt.Errorf("unreadable answer: %w", err)
		case m.Error != "":
			return pullError(m.Error)
		}
		limited.N = maxPullMessage
		if m.Progress.Total > 0 && m.ID != "" && len(layers) < 1024 {
			layers[m.ID] = bytes{m.Progress.Current, m.Progress.Total}
		}
		p := Progress{Text: strings.TrimSpace(m.Status + m.Stream)}
		for _, l := range layers {
			p.Done, p.Size = p.Done+l.done, p.Size+l.size
		}
		progress(p)
	}
}

// pullError is what a registry or the engine said, which has no type.
type pullError string

func (e pullError) Error() string { return string(e) }

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

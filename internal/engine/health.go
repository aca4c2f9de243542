package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// CheckHealth has Podman run the health check of a container, and waits for its
// end; how it went is in [Details]. Podman itself leaves that to timers of systemd.
// Docker runs checks itself and has nothing to ask for: then the error matches
// [errors.ErrUnsupported].
func (e *Engine) CheckHealth(ctx context.Context, id string) error {
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	what := "check the health of container " + short(id)
	// Podman's own interface, of which every version from 4 on serves this one.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman/v4.0.0/libpod/containers/"+url.PathEscape(id)+"/healthcheck", nil)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	resp, err := api.HTTPClient().Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxHealth)) // so that the connection is used again
	switch {
	case resp.StatusCode == http.StatusOK:
		return nil
	case resp.Header.Get("Libpod-API-Version") == "":
		return fmt.Errorf("%s: %w", what, errors.ErrUnsupported)
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return fmt.Errorf("%s: Podman answers %s", what, resp.Status)
}

// maxHealth bounds what is read of an answer, in bytes.
const maxHealth = 1 << 20

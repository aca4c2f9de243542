package e2e

import (
	"context"

	"github.com/harmony-fleet/fleet/e2e/image"
)

// Mixed runs the first devices' agents on this machine and the others as Pods.
type Mixed struct {
	// Host is how those on this machine run.
	Host Host
	// OnHost is how many run there; 0: none.
	OnHost int
}

func (m Mixed) programs() []image.Program { return append(m.Host.programs(), Pod{}.programs()...) }

func (Mixed) early() bool { return false }

func (m Mixed) start(ctx context.Context, s *Stack, devices []string) error {
	n := min(m.OnHost, len(devices))
	return allOrFirst(ctx,
		func(ctx context.Context) error { return m.Host.start(ctx, s, devices[:n]) },
		func(ctx context.Context) error { return Pod{}.start(ctx, s, devices[n:]) },
	)
}

//go:build !linux

package workload

import (
	"context"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

func (s *Server) prepareContainer(_ context.Context, c Call, _ program, _ engine.Container) (func(context.Context) (process, error), error) {
	return nil, notHere(c)
}

func (s *Server) prepareHost(c Call, _ program) (func(context.Context) (process, error), error) {
	return nil, notHere(c)
}

func notHere(c Call) error {
	return command.NewError(command.KindRuntimeUnavailable, "an agent on this operating system does not serve %s", c.Verb)
}

func foreignMount(int) (namespace string, ok bool) { return "", false }

// Reclaim has nothing to do where no program was started.
func (s *Server) Reclaim([]Started) int { return 0 }

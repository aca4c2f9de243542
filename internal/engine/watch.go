package engine

import (
	"context"
	"errors"
	"strings"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// Watch calls changed with the id of a container of the device whenever
// something happened to it, and with "" once it has asked for events, before it
// is known whether they come. It returns when ctx ends or the engine goes away;
// events that were missed meanwhile are lost, so they are only a hint.
func (e *Engine) Watch(ctx context.Context, device string, changed func(id string)) error {
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // ends the client's goroutine
	defer cancel()
	messages, errs := api.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)), filters.Arg("label", labelDevice+"="+device),
	)})
	changed("")
	for {
		select {
		case m := <-messages:
			// What runs in a container beside its program changes nothing of it.
			if m.Actor.Attributes[labelDevice] == device && !strings.HasPrefix(string(m.Action), "exec_") {
				changed(m.Actor.ID)
			}
		case err := <-errs:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				err = errors.New("the stream ended")
			}
			return e.fault(err, "events of the container engine")
		}
	}
}

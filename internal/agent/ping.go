package agent

import (
	"context"

	"github.com/harmony-fleet/fleet/command"
)

// pingHandler answers ping. It never waits.
type pingHandler struct{ agent *Agent }

func (pingHandler) inline() {}

func (h pingHandler) Handle(_ context.Context, req *Request) (any, error) {
	if _, err := command.DecodeRequest[command.PingRequest](command.VerbPing, req.Payload); err != nil {
		return nil, err
	}
	a := h.agent
	reply := &command.PingReply{
		DeviceID:        a.opts.DeviceID,
		AgentVersion:    a.opts.Version,
		UptimeS:         a.uptimeSeconds(),
		BootID:          a.bootID,
		Instance:        a.instance,
		Protocol:        a.opts.Protocol,
		Runtime:         a.state.runtimeState(),
		DesiredRevision: a.state.desiredRevision(),
		MemoryRSSBytes:  residentBytes(),
	}
	if req.Timed {
		reply.Time = &req.Arrived
	}
	return reply, nil
}

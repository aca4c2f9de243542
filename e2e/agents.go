package e2e

import (
	"context"

	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/credentials"
)

// AgentTarget is where the agents of a stack run: [Pod] or [Host].
type AgentTarget interface {
	// start has an agent run for the device until the stack is closed. It returns
	// before the agent is connected, or before the broker can be.
	start(ctx context.Context, s *Stack, device string) error
	programs() []image.Program
}

// Pod runs each agent as a Pod of its own, with no container engine, as the nodes of
// most clusters have none to offer. A Pod that is deleted is made again.
type Pod struct{}

func (Pod) programs() []image.Program { return []image.Program{programAgent} }

func (Pod) start(ctx context.Context, s *Stack, device string) error {
	login := s.sharedLogin()
	var key []byte
	if s.identity != nil {
		var err error
		if key, err = s.identity.deviceKey(ctx, device); err != nil {
			return err
		}
		login = map[string]any{
			"type": credentials.TypeZitadelKey, "issuer": s.identity.url, "project_id": s.identity.projectID, "key_file": filesDir + "/key.json",
		}
		if s.identity.ca != nil {
			login["ca_file"] = filesDir + "/issuer-ca.pem"
		}
	}
	files, err := s.agentFiles(device, filesDir, stateDir+"/agent", natsURL(s.addresses[serviceDevices], natsPort), nil, login)
	if err != nil {
		return err
	}
	if key != nil {
		files["key.json"] = key
	}
	if s.identity != nil && s.identity.ca != nil {
		files["issuer-ca.pem"] = s.identity.ca
	}
	ref := s.images[programAgent.Name]
	if s.opts.hooks.image != "" {
		ref = s.opts.hooks.image
	}
	return s.createPart(ctx, part{name: podName(device), image: ref, args: []string{"--config", filesDir + "/fleet-agent.toml"}, files: files})
}

// podName is the Pod of a device's agent.
func podName(device string) string { return "fleet-agent-" + device }

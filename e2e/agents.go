package e2e

import (
	"context"
	"fmt"
	"slices"

	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/credentials"
)

// AgentTarget is where the agents of a stack run: [Pod] or [Host].
type AgentTarget interface {
	// start has agents run for the devices until the stack is closed. It returns before
	// they are connected.
	start(ctx context.Context, s *Stack, devices []string) error
	// early tells that agents may be started before NATS is there.
	early() bool
	programs() []image.Program
}

// Pod runs agents in Pods, with no container engine, as the nodes of most clusters
// have none to offer. A Pod that is deleted is made again.
type Pod struct {
	// PerPod is how many agents share a Pod at most, each a container with files and
	// state of its own; they go and come back with their Pod. Default: 1 in a stack of
	// at most 8 devices, and 5 in a larger one, as a Pod costs a node far more than a
	// container. Not more than 50.
	PerPod int
}

const (
	maxAlone = 8 // devices of a stack that have a Pod each
	sharedBy = 5 // devices of a larger one that share a Pod
)

func (p Pod) perPod(devices int) int {
	switch {
	case p.PerPod > 0:
		return p.PerPod
	case devices <= maxAlone:
		return 1
	default:
		return sharedBy
	}
}

func (Pod) early() bool { return true }

func (Pod) programs() []image.Program { return []image.Program{programAgent} }

// perSecret is how many agents share a Secret, of which each Pod sees its own files: a
// node follows each Secret for itself, which costs more than the files.
const perSecret = 50

func (p Pod) start(ctx context.Context, s *Stack, devices []string) error {
	var list []func() error
	for group := range slices.Chunk(devices, perSecret) {
		list = append(list, func() error { return p.startGroup(ctx, s, "fleet-agents-"+group[0], group) })
	}
	return together(list...)
}

func (p Pod) startGroup(ctx context.Context, s *Stack, secret string, devices []string) error {
	parts := make([]part, len(devices))
	var list []func() error
	for i, device := range devices {
		list = append(list, func() (err error) {
			parts[i], err = p.part(ctx, s, device)
			return err
		})
	}
	if err := together(list...); err != nil {
		return err
	}
	all := map[string][]byte{}
	for i := range parts {
		parts[i].secret, parts[i].items = secret, map[string]string{}
		for name, content := range parts[i].files {
			key := devices[i] + "." + name
			all[key], parts[i].items[name] = content, key
		}
		parts[i].files = nil
	}
	if err := s.createSecret(ctx, secret, all); err != nil {
		return err
	}
	list = nil
	for shared := range slices.Chunk(parts, p.perPod(len(s.DeviceIDs))) {
		list = append(list, func() error { return s.startPod(ctx, shared[0].name, shared...) })
	}
	return together(list...)
}

func (Pod) part(ctx context.Context, s *Stack, device string) (part, error) {
	login := s.sharedLogin()
	var key []byte
	if s.identity != nil {
		var err error
		if key, err = s.identity.deviceKey(ctx, device); err != nil {
			return part{}, fmt.Errorf("machine key of device %s: %w", device, err)
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
		return part{}, err
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
	return part{name: podName(device), image: ref, args: []string{"--config", filesDir + "/fleet-agent.toml"}, files: files}, nil
}

// podName is the container of a device's agent, and the first one's of a Pod is the
// Pod's name too.
func podName(device string) string { return "fleet-agent-" + device }

// AgentPod names the Pod and the container in which the agent of a device runs; both
// are empty where it runs elsewhere.
func (s *Stack) AgentPod(device string) (pod, container string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, parts := range s.parts {
		for _, p := range parts {
			if p.name == podName(device) {
				return name, p.name
			}
		}
	}
	return "", ""
}

package e2e

import (
	"fmt"
	"io"
	"strings"

	"github.com/harmony-fleet/fleet/internal/access"
)

// maxTold is of how many agents PrintDebugInfo tells how to read their logs.
const maxTold = 10

// PrintDebugInfo writes what a person needs to look into a stack that is up, secrets
// of the admin included.
func (s *Stack) PrintDebugInfo(w io.Writer) {
	line := func(format string, args ...any) { fmt.Fprintf(w, "[e2e] "+format+"\n", args...) }
	fate := fmt.Sprintf("will be deleted on exit unless %s=1", EnvKeep)
	if s.opts.KeepNamespace {
		fate = "is kept; delete it with: kubectl delete namespace " + s.Namespace
	}
	line("namespace: %s (%s)", s.Namespace, fate)
	line("export KUBECONFIG=%s", s.Kubeconfig())
	line("kubectl -n %s get pods", s.Namespace)
	line("NATS: %s (CA: %s)", s.NATSURL, s.CAFile)
	if s.opts.AuthMode == UserPass {
		user, password := s.secrets.user(access.Ops)
		line("admin: user %s, password %s", user, password)
	} else {
		line("admin token: %s (use as auth_token)", s.AdminToken)
	}
	line("inbox prefix: %s", s.adminLogin(access.Ops).inbox)
	line("devices: %s", strings.Join(s.DeviceIDs, ", "))
	for i, device := range s.DeviceIDs {
		pod, container := s.AgentPod(device)
		if pod == "" {
			break // no agent is in a Pod
		}
		if i == maxTold {
			line("and so on: the container of an agent is named %s", podName("<device>"))
			break
		}
		line("tail agent: kubectl -n %s logs %s -c %s -f", s.Namespace, pod, container)
	}
	for _, name := range s.logged() {
		line("tail %s: kubectl -n %s logs %s -f", strings.TrimPrefix(name, "fleet-"), s.Namespace, name)
	}
}

// logged are the Pods of the parts beside the agents.
func (s *Stack) logged() []string {
	names := []string{partNATS}
	if s.opts.AuthMode == Callout {
		names = append(names, partCallout)
		if s.identity.part != nil {
			names = append(names, partIssuer)
		}
	}
	for _, c := range s.opts.Components {
		names = append(names, c.Name)
	}
	return names
}

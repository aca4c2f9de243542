package reconcile

import (
	"fmt"
	"strings"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// status tells where everything stands by what the last pass saw.
func (r *Reconciler) status() Report {
	rep := Report{Runtime: command.RuntimeReady}
	g := r.planned
	if !r.looked || r.fault != nil {
		rep.Runtime = command.RuntimeUnavailable
		if r.fault != nil {
			rep.Fault = r.fault.Error()
		}
	}
	if g == nil {
		return rep
	}
	rep.Revision, rep.Deployments = g.Revision, map[string]command.DeploymentStatus{}
	desired := map[key]bool{}
	for name, services := range g.services {
		for _, s := range services {
			desired[key{name, s.Name}] = true
		}
	}
	by := map[key][]engine.Container{}
	for _, c := range r.seen {
		k := key{c.Labels.Deployment, c.Labels.Service}
		by[k] = append(by[k], c)
		if !desired[k] {
			r.add(rep.Deployments, g, k, r.leftover(g, k, c))
		}
	}
	for name, services := range g.services {
		for _, s := range services {
			k := key{name, s.Name}
			r.add(rep.Deployments, g, k, r.service(k, s, by[k]))
		}
	}
	for name, e := range g.rejected {
		d := rep.Deployments[name]
		d.Revision, d.Phase = g.Revision, command.PhaseRejected
		d.Error = &command.ErrorDetail{Kind: e.Kind, Message: cut(e.Message, maxErrorText)}
		if len(d.Services) > 0 {
			d.Error.Message = cut(e.Message, maxErrorText-len(goesOn)) + goesOn
		}
		rep.Deployments[name] = d
	}
	if rep.Runtime != command.RuntimeReady {
		for name, d := range rep.Deployments {
			if d.Phase != command.PhaseRejected {
				d.Phase = command.PhaseRuntimeUnavailable
				d.Error = Unavailable("the container engine does not answer")
				rep.Deployments[name] = d
			}
		}
	}
	return rep
}

// goesOn is said of a rejected deployment of which there are containers.
const goesOn = "; what ran of it before goes on"

// Unavailable is the error of a deployment that has no engine to run on.
func Unavailable(why string) *command.ErrorDetail {
	return &command.ErrorDetail{Kind: command.KindRuntimeUnavailable, Message: why}
}

// add puts a service into the status of its deployment.
func (r *Reconciler) add(all map[string]command.DeploymentStatus, g *goal, k key, s command.ServiceStatus) {
	d, ok := all[k.deployment]
	if !ok {
		d = command.DeploymentStatus{Revision: g.Revision, Phase: s.Phase, Services: map[string]command.ServiceStatus{}}
	}
	d.Services[k.service] = s
	if weight(s.Phase) > weight(d.Phase) {
		d.Phase = s.Phase
	}
	all[k.deployment] = d
}

// weight orders phases: that of a deployment is the weightiest of its services.
func weight(p command.Phase) int {
	for i, q := range []command.Phase{
		command.PhaseExited, command.PhaseRunning, command.PhaseRemoving, command.PhaseStarting, command.PhasePending,
		command.PhasePulling, command.PhaseBackoff, command.PhaseFailed,
	} {
		if p == q {
			return i
		}
	}
	return -1
}

// service is where a desired service stands.
func (r *Reconciler) service(k key, s command.Service, list []engine.Container) command.ServiceStatus {
	status := command.ServiceStatus{Phase: command.PhasePending, Image: s.Image}
	u := r.units[k]
	if u == nil {
		return status
	}
	c, found := r.current(u, list)
	if found {
		r.describe(&status, c)
	} else if len(list) > 0 {
		r.describe(&status, list[0]) // the one that it replaces
		status.Image = s.Image
	}
	status.Restarts, status.LastError = u.restarts, u.lastError
	d := r.details[c.ID]
	switch {
	case u.step != nil && u.step.hash == u.hash:
		status.Phase, status.Progress = u.step.phase.get()
	case found && c.State == engine.StateRunning:
		status.Phase = command.PhaseRunning
	case found && c.State == engine.StatePaused:
		status.LastError = "somebody paused the container"
	case found && c.State == engine.StateExited && !restarts(s, d):
		status.Phase = command.PhaseExited
		if d.ExitCode != 0 {
			status.Phase = command.PhaseFailed
		}
	case r.opts.Now().Before(u.nextTry):
		status.Phase = command.PhaseBackoff
		next := u.nextTry.UTC().Round(0)
		status.NextTry = &next
	}
	return status
}

// leftover is where a container stands that is not desired, or whose deployment
// was rejected.
func (r *Reconciler) leftover(g *goal, k key, c engine.Container) command.ServiceStatus {
	if g.rejected[k.deployment] != nil {
		return r.service(k, command.Service{Name: k.service, Image: c.Image, Restart: c.Labels.Restart}, []engine.Container{c})
	}
	status := command.ServiceStatus{Phase: command.PhaseRemoving, Image: c.Image}
	r.describe(&status, c)
	return status
}

// describe fills in what is known of a container.
func (r *Reconciler) describe(s *command.ServiceStatus, c engine.Container) {
	d := r.details[c.ID]
	s.ContainerID, s.Image, s.ImageDigest, s.Health = c.ID, c.Image, r.digests[c.ImageID], d.Health
	if !d.StartedAt.IsZero() {
		at := d.StartedAt
		s.StartedAt = &at
	}
	if c.State == engine.StateExited {
		code := d.ExitCode
		s.ExitCode = &code
	}
}

// exitText says how a container ended.
func exitText(d engine.Details) string {
	text := fmt.Sprintf("ended with exit code %d", d.ExitCode)
	if ran := d.FinishedAt.Sub(d.StartedAt); !d.StartedAt.IsZero() && ran >= 0 {
		text += " after " + ran.Round(10*time.Millisecond).String()
	}
	if d.OOMKilled {
		text += ": out of memory"
	}
	if d.Error != "" {
		text += ": " + d.Error
	}
	return text
}

// cut shortens s to n bytes.
func cut(s string, n int) string {
	const ellipsis = "…"
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len(ellipsis)], "") + ellipsis
}

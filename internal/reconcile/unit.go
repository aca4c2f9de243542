package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/engine"
)

// key names a service of the device.
type key struct{ deployment, service string }

func (k key) String() string { return k.deployment + "/" + k.service }

// unit is what is remembered of a service between passes: nothing that another
// run of the agent could not do without.
type unit struct {
	key
	hash string // of the spec that all this is about

	step      *step // under way; nil: none
	wantImage string
	checked   uint64 // revision for which the image was pulled, where it is always pulled

	failures  int
	nextTry   time.Time
	lastError string
	leftover  time.Time // since when something that may be one is in the way; zero: nothing is
	restarts  int
	ended     time.Time // the end of the container that was counted last
}

// step is work on a unit that runs beside the passes.
type step struct {
	hash   string
	cancel context.CancelFunc
	phase  progress
}

// failed counts a failure and says when to try again.
func (u *unit) failed(o *Options, now time.Time, why string) {
	wait := o.BackoffMax
	if u.failures < 63 && o.BackoffMin <= o.BackoffMax>>u.failures { // else it may not fit a Duration
		wait = o.BackoffMin << u.failures
	}
	u.failures++
	u.lastError = cut(why, maxErrorText)
	u.nextTry = now.Add(jitter(wait, 0.1))
}

func (u *unit) forget() {
	u.failures, u.nextTry, u.lastError = 0, time.Time{}, ""
}

// maxErrorText bounds an error in a status, in bytes.
const maxErrorText = 512

// about makes the unit one of another spec, unless it is that already.
func (u *unit) about(hash string) {
	if u.hash == hash {
		return
	}
	*u = unit{key: u.key, hash: hash, step: u.step}
}

// specVersion stands for how a spec is made into a container: a change of that
// replaces every container.
const specVersion = "1"

// hashOf is the hash of what makes a container what it is.
func hashOf(s command.Service) string {
	s.Pull = ""
	s.Restart = restartOf(s)
	data, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("encode a service: %v", err)) // it was decoded from JSON
	}
	return digest(specVersion, string(data))
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func restartOf(s command.Service) string {
	switch s.Restart {
	case "", command.RestartUnlessStopped:
		return command.RestartAlways
	}
	return s.Restart
}

// specOf is the container of a service. Its name follows from what it is, so
// that the engine refuses to make it twice. image is the id of the image that it
// is to have, where its name may stand for another one by now.
func specOf(device string, k key, s command.Service, hash, image string) engine.Spec {
	short := hash
	if image != "" {
		short = digest(hash, image)
	}
	labels := engine.Labels{
		Device: device, Deployment: k.deployment, Service: k.service, Hash: hash, Restart: restartOf(s), Claims: claimsOf(s),
	}
	return engine.Spec{Name: labels.Name(short[:min(12, len(short))]), Service: s, Labels: labels}
}

// claimsOf names what two containers cannot have at the same time.
func claimsOf(s command.Service) []string {
	var claims []string
	for _, text := range s.Ports {
		if p, err := command.ParsePort(text); err == nil {
			claims = append(claims, fmt.Sprintf("port %d/%s", p.HostPort, p.Protocol))
		}
	}
	for _, text := range s.Volumes {
		if v, err := command.ParseVolume(text); err == nil && !v.ReadOnly {
			claims = append(claims, "volume "+v.Source)
		}
	}
	return claims
}

func overlap(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}

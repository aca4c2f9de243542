package workload

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

// Policy is what the device itself allows, whatever roles the caller has. The
// zero value allows logs, exec and shell in every container to every caller, and
// nothing on the host.
type Policy struct {
	// Verbs are those of logs, exec and shell that are served; nil: all of them.
	Verbs []command.Verb
	// Containers are patterns of path.Match, of which one must match the container's
	// deployment/service, or its service alone where the pattern has no slash; nil:
	// every container.
	Containers []string
	// Volumes are patterns of path.Match, in which no "*" matches a slash, for the
	// directories of the device that deployments may mount; nil: every directory.
	// Named volumes are not asked about.
	Volumes []string
	// Callers are patterns of path.Match for the caller's NATS user name, such as
	// "https://id.example#*", in which "*" also matches slashes; nil: every caller.
	Callers []string
	// Host allows exec and shell on the device itself, as HostUser.
	Host bool
	// HostUser is whom programs on the host run as. It is needed with Host, and is
	// root only where it says so.
	HostUser string
	// MaxSessions and MaxSessionsPerCaller bound the sessions at once; 0: 128 and 32.
	MaxSessions, MaxSessionsPerCaller int
	// MaxDuration ends a session of exec or shell; 0: never.
	MaxDuration time.Duration
	// IdleTimeout ends a shell in which nothing is typed or printed; 0: never.
	IdleTimeout time.Duration
}

// Validate names what is wrong with the policy.
func (p Policy) Validate() error {
	var errs []error
	for _, v := range p.Verbs {
		if v != command.VerbLogs && v != command.VerbExec && v != command.VerbShell {
			errs = append(errs, fmt.Errorf("policy.verbs: %q is none of logs, exec and shell", v))
		}
	}
	for key, patterns := range map[string][]string{"policy.containers": p.Containers, "policy.callers": p.Callers, "policy.volumes": p.Volumes} {
		for _, pattern := range patterns {
			if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
				errs = append(errs, fmt.Errorf("%s: %q is not a pattern", key, pattern))
			}
		}
	}
	for _, pattern := range p.Volumes {
		if !path.IsAbs(pattern) || path.Clean(pattern) != pattern {
			errs = append(errs, fmt.Errorf("policy.volumes: %q is not the pattern of an absolute path, such as \"/srv/*\"", pattern))
		}
	}
	for key, n := range map[string]int{"policy.max_sessions": p.MaxSessions, "policy.max_sessions_per_caller": p.MaxSessionsPerCaller} {
		if n < 0 || n > 1<<16 {
			errs = append(errs, fmt.Errorf("%s: %d is not between 1 and %d", key, n, 1<<16))
		}
	}
	if p.MaxDuration < 0 || p.IdleTimeout < 0 {
		errs = append(errs, errors.New("policy.max_duration and policy.idle_timeout: want a duration such as \"1h\""))
	}
	if p.Host && p.HostUser == "" {
		errs = append(errs, errors.New("exec.user: missing: with exec.host = true, name the user that programs on this device run as"))
	}
	return errors.Join(errs...)
}

// Service refuses a service that mounts a directory which deployments may not
// have. The error starts with the path of the field.
func (p Policy) Service(s command.Service) error {
	for i, text := range s.Volumes {
		v, err := command.ParseVolume(text)
		if err != nil || p.Volumes == nil || v.Named() {
			continue // what cannot be read was refused before
		}
		if !slices.ContainsFunc(p.Volumes, func(pattern string) bool { ok, err := path.Match(pattern, v.Source); return err == nil && ok }) {
			return fmt.Errorf("volumes[%d]: the policy of this device does not allow deployments to mount %s (policy.volumes)", i, v.Source)
		}
	}
	return nil
}

// caller refuses a verb or a caller.
func (p Policy) caller(verb command.Verb, user string) error {
	if p.Verbs != nil && !slices.Contains(p.Verbs, verb) {
		return command.NewError(command.KindDenied, "the policy of this device does not allow %s", verb)
	}
	if p.Callers != nil && !slices.ContainsFunc(p.Callers, func(pattern string) bool { return glob(pattern, user) }) {
		return command.NewError(command.KindDenied, "the policy of this device does not allow %s to this caller", verb)
	}
	return nil
}

// container refuses a container.
func (p Policy) container(verb command.Verb, deployment, service string) error {
	if p.Containers == nil || slices.ContainsFunc(p.Containers, func(pattern string) bool {
		whole, err := path.Match(pattern, deployment+"/"+service)
		alone, _ := path.Match(pattern, service)
		return err == nil && (whole || alone)
	}) {
		return nil
	}
	return command.NewError(command.KindDenied, "the policy of this device does not allow %s in the container %s/%s", verb, deployment, service)
}

// host refuses what is to run on the device itself.
func (p Policy) host(verb command.Verb) error {
	if !p.Host {
		return command.NewError(command.KindDenied, "the policy of this device does not allow %s on the host, only in containers", verb)
	}
	return nil
}

// glob is path.Match whose "*" matches slashes too, which are everywhere in user
// names.
func glob(pattern, s string) bool {
	const slash = "\x00"
	ok, err := path.Match(swap(pattern, slash), swap(s, slash))
	return err == nil && ok
}

func swap(s, with string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '/' {
			b[i] = with[0]
		}
	}
	return string(b)
}

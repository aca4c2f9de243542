package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-connections/nat"

	"github.com/harmony-fleet/fleet/command"
)

// The labels of containers and volumes that the agent made.
const (
	labelPrefix     = "dev.harmony.fleet."
	labelDevice     = labelPrefix + "device"
	labelDeployment = labelPrefix + "deployment"
	labelService    = labelPrefix + "service"
	labelHash       = labelPrefix + "spec"
	labelRestart    = labelPrefix + "restart"
	labelClaims     = labelPrefix + "claims"
)

// Labels say whose a container is and what it was made from.
type Labels struct {
	Device, Deployment, Service string
	Hash                        string // of the spec, in hexadecimal
	Restart                     string // see [command.Service].Restart
	// Claims name what only one container can have at a time: host ports and
	// writable volumes. A list does not tell them on every engine.
	Claims []string
}

// Name is the name of a container with these labels. No part of it has an
// underscore, so that no two services share one.
func (l Labels) Name(suffix string) string {
	return "fleet_" + l.Device + "_" + l.Deployment + "_" + l.Service + "_" + suffix
}

func (l Labels) table() map[string]string {
	m := map[string]string{
		labelDevice: l.Device, labelDeployment: l.Deployment, labelService: l.Service, labelHash: l.Hash, labelRestart: l.Restart,
	}
	if len(l.Claims) > 0 {
		claims, err := json.Marshal(l.Claims)
		if err != nil {
			panic(fmt.Sprintf("encode claims: %v", err)) // strings always marshal
		}
		m[labelClaims] = string(claims)
	}
	return m
}

func labelsOf(m map[string]string) Labels {
	l := Labels{
		Device: m[labelDevice], Deployment: m[labelDeployment], Service: m[labelService], Hash: m[labelHash], Restart: m[labelRestart],
	}
	// A label that somebody damaged claims nothing; then the engine says what is taken.
	_ = json.Unmarshal([]byte(m[labelClaims]), &l.Claims)
	return l
}

// Spec is a container to be made.
type Spec struct {
	Name    string // unique on the engine
	Labels  Labels
	Service command.Service // checked
}

// State is whether a container runs.
type State string

// The states, as the API names them; an engine may have others while it is on the
// way from one to another.
const (
	StateCreated    State = "created"
	StateRunning    State = "running"
	StatePaused     State = "paused"
	StateRestarting State = "restarting"
	StateExited     State = "exited"
	StateRemoving   State = "removing"
	StateDead       State = "dead"
	// StateStopping is Podman's own. A container stays so where Podman was killed amid
	// a stop, with all that it has.
	StateStopping State = "stopping"
)

// stateOf takes Podman's own names of what was never started.
func stateOf(s string) State {
	switch s {
	case "configured", "initialized":
		return StateCreated
	}
	return State(s)
}

// Container is a container as a list shows it.
type Container struct {
	ID      string
	Name    string
	Labels  Labels
	Image   string
	ImageID string
	State   State
	Created time.Time // to the second
}

// Details are what only an inspection of one container tells.
type Details struct {
	Container
	StartedAt  time.Time // zero: never
	FinishedAt time.Time // zero: never
	// PID is of its first process, on the host; 0: none. A container that is
	// [StateCreated] and has one is amid a start.
	PID      int
	ExitCode int
	// StopGrace is how long it has between SIGTERM and SIGKILL; 0: not known.
	StopGrace time.Duration
	Error     string // why the engine could not run it
	OOMKilled bool
	Health    string // starting, healthy, unhealthy; empty without a health check
	// HealthInterval is the time from the end of a health check to the next one, and
	// HealthTimeout how long one may take; zero without a health check.
	HealthInterval, HealthTimeout time.Duration
}

// defaultHealthTime is both where a health check does not say, on Podman and Docker.
const defaultHealthTime = 30 * time.Second

// Containers lists the containers that were made for the device, whatever their
// state. Labels alone do not say so: an image that was committed from a container
// has them, and gives them to every container that somebody makes of it. So does
// the name, and [Broken] names none but a container of the device.
func (e *Engine) Containers(ctx context.Context, device string) ([]Container, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	list, err := api.ContainerList(ctx, container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("label", labelDevice+"="+device), filters.Arg("name", "^fleet_"+device+"_")),
	})
	if err != nil {
		return nil, e.fault(err, "list containers")
	}
	found := make([]Container, 0, len(list))
	for _, c := range list {
		labels := labelsOf(c.Labels)
		if labels.Device != device { // an engine that overlooks the filter must not hand out other people's
			continue
		}
		one := Container{
			ID: c.ID, Labels: labels, Image: c.Image, ImageID: c.ImageID, State: stateOf(c.State), Created: time.Unix(c.Created, 0),
		}
		if len(c.Names) > 0 {
			one.Name = strings.TrimPrefix(c.Names[0], "/")
		}
		if strings.HasPrefix(one.Name, labels.Name("")) {
			found = append(found, one)
		}
	}
	return found, nil
}

// Inspect tells more of one container.
func (e *Engine) Inspect(ctx context.Context, id string) (Details, error) {
	api, err := e.api(ctx)
	if err != nil {
		return Details{}, err
	}
	c, err := api.ContainerInspect(ctx, id)
	if err != nil {
		return Details{}, e.fault(err, "inspect container "+short(id))
	}
	d := Details{Container: Container{ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), ImageID: c.Image}}
	if c.Config != nil {
		d.Image, d.Labels = c.Config.Image, labelsOf(c.Config.Labels)
		if c.Config.StopTimeout != nil {
			d.StopGrace = seconds(*c.Config.StopTimeout)
		}
	}
	d.Created = timeOf(c.Created)
	if s := c.State; s != nil {
		d.State, d.ExitCode, d.Error, d.OOMKilled = stateOf(s.Status), s.ExitCode, s.Error, s.OOMKilled
		d.PID = s.Pid
		d.StartedAt, d.FinishedAt = timeOf(s.StartedAt), timeOf(s.FinishedAt)
		if s.Health != nil && s.Health.Status != container.NoHealthcheck {
			d.Health = string(s.Health.Status)
			d.HealthInterval, d.HealthTimeout = defaultHealthTime, defaultHealthTime
			if c.Config != nil && c.Config.Healthcheck != nil {
				d.HealthInterval = cmp.Or(c.Config.Healthcheck.Interval, defaultHealthTime)
				d.HealthTimeout = cmp.Or(c.Config.Healthcheck.Timeout, defaultHealthTime)
			}
		}
	}
	return d, nil
}

// timeOf reads a time of the API, in which year 1 and 1970 mean never.
func timeOf(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1970 {
		return time.Time{}
	}
	return t.UTC()
}

// maxLog bounds what the engine keeps of a container's output: a device's disk
// must not fill up.
const maxLog = "10m"

// Create makes a container without starting it, and the named volumes that it
// mounts. A name in use is [ErrConflict], an image that is not there
// [ErrNotFound].
func (e *Engine) Create(ctx context.Context, s Spec) (id string, err error) {
	what := "create container " + s.Name
	config, host, err := s.convert()
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	api, err := e.api(ctx)
	if err != nil {
		return "", err
	}
	created, err := api.ContainerCreate(ctx, config, host, nil, nil, s.Name)
	if err != nil {
		return "", e.fault(err, what)
	}
	return created.ID, nil
}

// convert translates to the engine's own terms. The engine restarts nothing: the
// agent does, so that it is bounded and reported on every engine alike.
func (s Spec) convert() (*container.Config, *container.HostConfig, error) {
	svc := s.Service
	grace := int(StopGrace(svc).Seconds())
	config := &container.Config{
		Image: svc.Image, Cmd: svc.Command, Entrypoint: svc.Entrypoint, WorkingDir: svc.Workdir, User: svc.User,
		Labels: s.Labels.table(), StopTimeout: &grace, ExposedPorts: nat.PortSet{},
	}
	for _, name := range slices.Sorted(maps.Keys(svc.Env)) {
		config.Env = append(config.Env, name+"="+svc.Env[name])
	}
	if h := svc.Health; h != nil {
		config.Healthcheck = &container.HealthConfig{
			Test: append([]string{"CMD"}, h.Command...), Retries: h.Retries,
			Interval: seconds(h.IntervalS), Timeout: seconds(h.TimeoutS), StartPeriod: seconds(h.StartPeriodS),
		}
	}
	host := &container.HostConfig{
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:     container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": maxLog}},
		PortBindings:  nat.PortMap{},
		Resources:     container.Resources{Memory: svc.Resources.MemoryBytes, NanoCPUs: int64(svc.Resources.CPUs * 1e9)},
	}
	for _, text := range svc.Ports {
		p, err := command.ParsePort(text)
		if err != nil {
			return nil, nil, err
		}
		inside := nat.Port(fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol))
		config.ExposedPorts[inside] = struct{}{}
		host.PortBindings[inside] = append(host.PortBindings[inside], nat.PortBinding{
			HostIP: addrText(p.HostIP), HostPort: strconv.Itoa(int(p.HostPort)),
		})
	}
	for _, text := range svc.Volumes {
		v, err := command.ParseVolume(text)
		if err != nil {
			return nil, nil, err
		}
		m := mount.Mount{Type: mount.TypeBind, Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
		if v.Named() {
			m.Type, m.Source = mount.TypeVolume, s.volume(v.Source)
			m.VolumeOptions = &mount.VolumeOptions{Labels: map[string]string{labelDevice: s.Labels.Device, labelDeployment: s.Labels.Deployment}}
		}
		host.Mounts = append(host.Mounts, m)
	}
	return config, host, nil
}

// volume is the engine's name of a deployment's volume.
func (s Spec) volume(name string) string {
	return "fleet_" + s.Labels.Device + "_" + s.Labels.Deployment + "_" + name
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// StopGrace is how long a container has to end after SIGTERM.
func StopGrace(s command.Service) time.Duration {
	if s.StopTimeoutS == 0 {
		return 10 * time.Second
	}
	return seconds(s.StopTimeoutS)
}

// Start starts a container; one that runs already is no error.
func (e *Engine) Start(ctx context.Context, id string) error {
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	return e.fault(api.ContainerStart(ctx, id, container.StartOptions{}), "start container "+short(id))
}

// Stop sends SIGTERM and, when the container's own grace is over, SIGKILL. One
// that does not run is no error.
func (e *Engine) Stop(ctx context.Context, id string) error {
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	return e.fault(api.ContainerStop(ctx, id, container.StopOptions{}), "stop container "+short(id))
}

// Remove removes a container with its anonymous volumes, killing it if it runs.
// Named volumes stay. One that is gone is no error.
func (e *Engine) Remove(ctx context.Context, id string) error {
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	err = api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if err = e.fault(err, "remove container "+short(id)); isNotFound(err) {
		return nil
	}
	return err
}

func short(id string) string { return id[:min(12, len(id))] }

package command

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// Limits of a desired state, beside [MaxDocument].
const (
	MaxServices = 256 // in one deployment
	// MaxDeployments is how many deployments one device may have.
	MaxDeployments = 256
	maxList        = 1024 // arguments, ports, volumes, environment variables
	maxSeconds     = 24 * 60 * 60
	minMemory      = 6 << 20 // what Docker takes at least
)

// CheckDeploymentName refuses what is not one DNS label: names of deployments
// and services become part of container names.
func CheckDeploymentName(name string) error {
	if why := deviceIDFault(name); why != "" {
		return fmt.Errorf("name %s %s; it is 1 to 63 of a-z, 0-9 and '-', with no '-' at either end", quote(name), why)
	}
	return nil
}

// Services reads and checks the data of a [ScorePodmanV0] score. It is strict:
// an unknown field is an error, since a container without what it asks for is
// not the container that was desired. The error is an [*Error] with
// [KindBadRequest] that starts with the path of the field, for example
// "services[0].ports[1]: …".
func (s Score) Services() ([]Service, error) {
	if s.Type != ScorePodmanV0 {
		return nil, badRequest("type: score type %s is not known; known is %s", quote(s.Type), ScorePodmanV0)
	}
	var data PodmanV0
	if err := decodeObject(s.Data, &data, true); err != nil {
		return nil, badRequest("data: %v", err)
	}
	if err := data.check(); err != nil {
		return nil, badRequest("%v", err)
	}
	return data.Services, nil
}

// Split reads and checks every deployment: those that can be run, and what is
// wrong with the others, by name. A host port that two deployments want goes to
// the first by name. Messages start with the path of the field, for example
// "deployments.hello.services[0].ports[1]: …".
func (d DesiredState) Split() (services map[string][]Service, rejected map[string]*Error) {
	services, rejected = map[string][]Service{}, map[string]*Error{}
	taken := portTable{}
	for i, name := range slices.Sorted(maps.Keys(d.Deployments)) {
		at := "deployments." + name + "."
		if len(name) > MaxDeviceID {
			at = "deployments." + quote(name) + "."
		}
		reject := func(format string, args ...any) { rejected[name] = badRequest(at+format, args...) }
		if err := CheckDeploymentName(name); err != nil {
			rejected[name] = badRequest("deployments: %v", err)
			continue
		}
		if i >= MaxDeployments {
			reject("one device has at most %d deployments", MaxDeployments)
			continue
		}
		list, err := d.Deployments[name].Services()
		if err != nil {
			reject("%s", err.(*Error).Message)
			continue
		}
		if err := taken.add(name, list); err != nil {
			reject("%v", err)
			continue
		}
		services[name] = list
	}
	return services, rejected
}

// ParseDesiredState reads a document as its writer should: every unknown field
// is an error, and so is every deployment that a device would reject. The error
// is an [*Error] with [KindBadRequest].
func ParseDesiredState(data []byte) (DesiredState, error) {
	if len(data) > MaxDocument {
		return DesiredState{}, badRequest("the document has %d bytes, more than the %d allowed", len(data), MaxDocument)
	}
	var d DesiredState
	if err := decodeObject(data, &d, true); err != nil {
		return d, badRequest("the document: %v", err)
	}
	if d.Schema != Schema {
		return d, badRequest(`schema: want "schema":%d, not %d`, Schema, d.Schema)
	}
	if d.Deployments == nil {
		return d, badRequest(`deployments: missing; an empty object means that nothing is to run`)
	}
	_, rejected := d.Split()
	var faults []string
	for _, name := range slices.Sorted(maps.Keys(rejected)) {
		faults = append(faults, rejected[name].Message)
	}
	if len(faults) > 0 {
		return d, badRequest("%s", strings.Join(faults, "\n"))
	}
	return d, nil
}

func (p PodmanV0) check() error {
	if len(p.Services) == 0 {
		return errors.New("services: there must be at least one")
	}
	if len(p.Services) > MaxServices {
		return fmt.Errorf("services: %d of them, more than the %d allowed", len(p.Services), MaxServices)
	}
	names := map[string]int{}
	for i, s := range p.Services {
		if err := s.check(); err != nil {
			return fmt.Errorf("services[%d].%w", i, err)
		}
		if first, ok := names[s.Name]; ok {
			return fmt.Errorf("services[%d].name: %s is the name of services[%d] already", i, s.Name, first)
		}
		names[s.Name] = i
	}
	return nil
}

func (s Service) check() error {
	if err := CheckDeploymentName(s.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if err := checkImage(s.Image); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	for field, words := range map[string][]string{"command": s.Command, "entrypoint": s.Entrypoint} {
		if err := checkWords(words); err != nil {
			return fmt.Errorf("%s%w", field, err)
		}
	}
	if err := checkEnv(s.Env); err != nil {
		return err
	}
	if s.Workdir != "" && (!path.IsAbs(s.Workdir) || hasControl(s.Workdir)) {
		return fmt.Errorf("workdir: %s is not an absolute path", quote(s.Workdir))
	}
	if s.User != "" && !userForm().MatchString(s.User) {
		return fmt.Errorf(`user: %s is not a user; want for example "nobody", "1000" or "1000:1000"`, quote(s.User))
	}
	if err := s.checkPlaces(); err != nil {
		return err
	}
	if !slices.Contains([]string{"", RestartNo, RestartOnFailure, RestartAlways, RestartUnlessStopped}, s.Restart) {
		return fmt.Errorf("restart: %s is not no, on-failure, always or unless-stopped", quote(s.Restart))
	}
	if !slices.Contains([]string{"", PullMissing, PullAlways, PullNever}, s.Pull) {
		return fmt.Errorf("pull: %s is not missing, always or never", quote(s.Pull))
	}
	if n := s.Resources.MemoryBytes; n != 0 && n < minMemory {
		return fmt.Errorf("resources.memory_bytes: %d is less than %d; 0 means no bound", n, minMemory)
	}
	if n := s.Resources.CPUs; n != 0 && (n < 0.01 || n > 1024 || math.IsNaN(n)) {
		return fmt.Errorf("resources.cpus: %v is not between 0.01 and 1024; 0 means no bound", n)
	}
	if err := checkSeconds("stop_timeout_s", s.StopTimeoutS); err != nil {
		return err
	}
	return s.Health.check()
}

// checkPlaces checks what a container shares with its host.
func (s Service) checkPlaces() error {
	if len(s.Ports) > maxList {
		return fmt.Errorf("ports: more than the %d allowed", maxList)
	}
	ports := portTable{}
	for i, text := range s.Ports {
		p, err := ParsePort(text)
		if err == nil {
			err = ports.take(p, fmt.Sprintf("ports[%d]", i))
		}
		if err != nil {
			return fmt.Errorf("ports[%d]: %w", i, err)
		}
	}
	if len(s.Volumes) > maxList {
		return fmt.Errorf("volumes: more than the %d allowed", maxList)
	}
	targets := map[string]int{}
	for i, text := range s.Volumes {
		v, err := ParseVolume(text)
		if err != nil {
			return fmt.Errorf("volumes[%d]: %w", i, err)
		}
		if first, ok := targets[v.Target]; ok {
			return fmt.Errorf("volumes[%d]: %s is the target of volumes[%d] already", i, v.Target, first)
		}
		targets[v.Target] = i
	}
	return nil
}

func (h *HealthCheck) check() error {
	if h == nil {
		return nil
	}
	if len(h.Command) == 0 {
		return errors.New("health.command: missing")
	}
	if err := checkWords(h.Command); err != nil {
		return fmt.Errorf("health.command%w", err)
	}
	if h.Retries < 0 || h.Retries > 1000 {
		return fmt.Errorf("health.retries: %d is not between 0 and 1000", h.Retries)
	}
	return errors.Join(checkSeconds("health.interval_s", h.IntervalS), checkSeconds("health.timeout_s", h.TimeoutS),
		checkSeconds("health.start_period_s", h.StartPeriodS))
}

func checkSeconds(field string, n int) error {
	if n < 0 || n > maxSeconds {
		return fmt.Errorf("%s: %d is not between 0 and %d", field, n, maxSeconds)
	}
	return nil
}

// checkWords starts its error with the index of the word, or with ": ".
func checkWords(words []string) error {
	if len(words) > maxList {
		return fmt.Errorf(": more than the %d words allowed", maxList)
	}
	for i, w := range words {
		if strings.ContainsRune(w, 0) {
			return fmt.Errorf("[%d]: holds a zero byte", i)
		}
	}
	return nil
}

func checkEnv(env map[string]string) error {
	if len(env) > maxList {
		return fmt.Errorf("env: more than the %d variables allowed", maxList)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if name == "" || strings.ContainsRune(name, '=') || hasControl(name) {
			return fmt.Errorf("env: %s is not the name of a variable", quote(name))
		}
		if strings.ContainsRune(env[name], 0) {
			return fmt.Errorf("env.%s: holds a zero byte", name)
		}
	}
	return nil
}

func checkImage(image string) error {
	if image == "" {
		return errors.New("missing")
	}
	if len(image) > 512 || !imageForm().MatchString(image) {
		return fmt.Errorf(`%s is not the name of an image; want for example "docker.io/library/busybox:1"`, quote(image))
	}
	return nil
}

// imageForm is the grammar of image names of github.com/distribution/reference,
// which this package does not import to stay a leaf: [host[:port]/]path[:tag][@digest].
// It and its like are compiled when they are first needed: in memory they are large,
// and an agent without containers needs none of them.
var imageForm = sync.OnceValue(func() *regexp.Regexp {
	const (
		label  = `[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?`
		host   = `(?:` + label + `(?:\.` + label + `)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?`
		name   = `[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*`
		tag    = `[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}`
		digest = `[a-zA-Z][a-zA-Z0-9]*(?:[-_+.][a-zA-Z][a-zA-Z0-9]*)*:[0-9a-fA-F]{32,128}`
	)
	return regexp.MustCompile(`^(?:` + host + `/)?` + name + `(?:/` + name + `)*(?::` + tag + `)?(?:@` + digest + `)?$`)
})

var userForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$`)
})

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

// Port is one port of a container that is reachable on the device.
type Port struct {
	HostIP        netip.Addr // the zero Addr: every address of the device
	HostPort      uint16
	ContainerPort uint16
	Protocol      string // tcp or udp
}

// ParsePort reads "[ip:]host:container[/protocol]": "8080:80",
// "127.0.0.1:53:53/udp", "[::1]:8080:80/tcp". The protocol is tcp, the default,
// or udp.
func ParsePort(text string) (Port, error) {
	p := Port{Protocol: "tcp"}
	bad := func(why string) (Port, error) {
		return Port{}, fmt.Errorf(`%s: %s; want "host:container" as in "8080:80" or "127.0.0.1:53:53/udp"`, quote(text), why)
	}
	rest, protocol, ok := strings.Cut(text, "/")
	if ok {
		if protocol != "tcp" && protocol != "udp" {
			return bad("the protocol is tcp or udp")
		}
		p.Protocol = protocol
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return bad("there is no ':'")
	}
	host, container := rest[:i], rest[i+1:]
	if p.ContainerPort, ok = portNumber(container); !ok {
		return bad("the container's port is not 1 to 65535")
	}
	if i = strings.LastIndexByte(host, ':'); i >= 0 {
		ip := host[:i]
		if inner, ok := strings.CutPrefix(ip, "["); ok && strings.HasSuffix(inner, "]") {
			ip = strings.TrimSuffix(inner, "]")
		} else if strings.Contains(ip, ":") {
			return bad("an IPv6 address stands in brackets")
		}
		addr, err := netip.ParseAddr(ip)
		if err != nil || addr.Zone() != "" {
			return bad("before the host's port stands an IP address")
		}
		if !addr.IsUnspecified() {
			p.HostIP = addr.Unmap()
		}
		host = host[i+1:]
	}
	if p.HostPort, ok = portNumber(host); !ok {
		return bad("the host's port is not 1 to 65535")
	}
	return p, nil
}

func portNumber(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// Conflicts tells whether both cannot be taken on the device at one time.
func (p Port) Conflicts(q Port) bool {
	return p.HostPort == q.HostPort && p.Protocol == q.Protocol &&
		(!p.HostIP.IsValid() || !q.HostIP.IsValid() || p.HostIP == q.HostIP)
}

// portTable finds host ports that are wanted twice.
type portTable map[uint16][]takenPort

type takenPort struct {
	Port
	by string
}

func (t portTable) take(p Port, by string) error {
	for _, other := range t[p.HostPort] {
		if p.Conflicts(other.Port) {
			return fmt.Errorf("host port %d/%s is taken by %s", p.HostPort, p.Protocol, other.by)
		}
	}
	t[p.HostPort] = append(t[p.HostPort], takenPort{p, by})
	return nil
}

// add takes all ports of a deployment whose ports are well formed, or none.
func (t portTable) add(deployment string, services []Service) error {
	added := portTable{}
	for i, s := range services {
		for j, text := range s.Ports {
			p, err := ParsePort(text)
			if err != nil {
				return err
			}
			by := fmt.Sprintf("deployments.%s.services[%d].ports[%d]", deployment, i, j)
			for _, table := range []portTable{t, added} {
				for _, other := range table[p.HostPort] {
					if p.Conflicts(other.Port) {
						return fmt.Errorf("services[%d].ports[%d]: host port %d/%s is taken by %s", i, j, p.HostPort, p.Protocol, other.by)
					}
				}
			}
			added[p.HostPort] = append(added[p.HostPort], takenPort{p, by})
		}
	}
	for port, list := range added {
		t[port] = append(t[port], list...)
	}
	return nil
}

// Volume is a directory of the device, or a named volume of its engine, in a
// container.
type Volume struct {
	Source   string // an absolute path, or a name
	Target   string // an absolute path in the container
	ReadOnly bool
}

// Named tells whether Source is the name of a volume.
func (v Volume) Named() bool { return !path.IsAbs(v.Source) }

var volumeName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)
})

// ParseVolume reads "source:target[:ro|:rw]". A source that is not an absolute
// path is the name of a volume, which belongs to the deployment: each device and
// deployment has its own of that name.
func ParseVolume(text string) (Volume, error) {
	bad := func(why string) (Volume, error) {
		return Volume{}, fmt.Errorf(`%s: %s; want "source:target" as in "/srv/data:/data" or "data:/data:ro"`, quote(text), why)
	}
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return bad("there is one ':', or two")
	}
	v := Volume{Source: parts[0], Target: parts[1]}
	if len(parts) == 3 {
		if parts[2] != "ro" && parts[2] != "rw" {
			return bad("the mode is ro or rw")
		}
		v.ReadOnly = parts[2] == "ro"
	}
	switch {
	case hasControl(text):
		return bad("it holds a control character")
	case v.Named() && !volumeName().MatchString(v.Source):
		return bad("the source is an absolute path or a name of a-z, A-Z, 0-9, '_', '.' and '-'")
	case !v.Named() && path.Clean(v.Source) != v.Source:
		return bad("the source has '.', '..', '//' or a '/' at its end")
	case !path.IsAbs(v.Target) || path.Clean(v.Target) != v.Target || v.Target == "/":
		return bad("the target is an absolute path other than /, without '.', '..', '//' or a '/' at its end")
	}
	return v, nil
}

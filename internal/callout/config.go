package callout

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/netaddr"
	"github.com/harmony-fleet/fleet/internal/tomlconfig"
)

// Config is the TOML configuration of the service. docs/callout.md explains each key.
type Config struct {
	// Listen is the address of /healthz, /readyz and /metrics. Default ":8080"; "off": none.
	Listen string `toml:"listen"`
	// Workers is how many requests are worked on at once. Default 64.
	Workers int `toml:"workers"`
	// Queue is how many requests may wait; the oldest goes when it is full. Default 4096.
	Queue int `toml:"queue"`
	// MaxAge is how long a request may wait before it is dropped unanswered. Default 1.5 s;
	// must stay below the server's own 2 s.
	MaxAge Duration `toml:"max_age"`
	// MaxSession caps how long a connection lives, whatever its token's expiry. Default 12 h.
	MaxSession Duration `toml:"max_session"`
	// ProbeInterval is the time between two self-probes. Default 10 s.
	ProbeInterval Duration `toml:"probe_interval"`

	NATS     NATS            `toml:"nats"`
	Signing  Signing         `toml:"signing"`
	Accounts access.Accounts `toml:"accounts"`
	Issuers  []Issuer        `toml:"issuers"`
	Log      tomlconfig.Log  `toml:"log"`
}

// NATS says how the service itself connects: as a user whom the server's auth_callout
// names in auth_users, who therefore does not need a callout to get in.
type NATS struct {
	URL          URLs   `toml:"url"`           // one or a list; default nats://127.0.0.1:4222
	User         string `toml:"user"`          // default "callout"
	Password     string `toml:"password"`      // or PasswordFile
	PasswordFile string `toml:"password_file"` // read for each connection attempt
	Insecure     bool   `toml:"insecure"`      // plaintext to a host that is not loopback
	TLS          TLS    `toml:"tls"`
}

// String shows everything but the password.
func (n NATS) String() string {
	return fmt.Sprintf("nats(url %q, user %q, password_file %q, insecure %t, tls %+v)", []string(n.URL), n.User, n.PasswordFile, n.Insecure, n.TLS)
}

// GoString is String.
func (n NATS) GoString() string { return n.String() }

// TLS names PEM files. With CA or Cert set the connection must be TLS.
type TLS struct {
	CA   string `toml:"ca"`
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// Signing names the files with the service's seeds; see [GenerateSeeds].
type Signing struct {
	IssuerSeedFile string `toml:"issuer_seed_file"` // account nkey seed (SA...), required
	XKeySeedFile   string `toml:"xkey_seed_file"`   // curve nkey seed (SX...); empty: no encryption
}

// Issuer is an OIDC issuer whose tokens are accepted, and what it may grant.
type Issuer struct {
	URL       string   `toml:"url"`        // exactly the tokens' "iss"
	Audience  string   `toml:"audience"`   // must be among the tokens' "aud"
	CAFile    string   `toml:"ca_file"`    // default: the system's authorities
	TokenFile string   `toml:"token_file"` // bearer token for the issuer's endpoints
	JWKSURL   string   `toml:"jwks_url"`   // default: by discovery
	Insecure  bool     `toml:"insecure"`   // http to a host that is not loopback
	Refresh   Duration `toml:"refresh"`    // of the keys; default 5 min
	Leeway    Duration `toml:"leeway"`     // clock difference forgiven; default 30 s

	// ProjectID is the Zitadel project whose roles count. With it only the claim that names
	// this project is read: the plain roles claim speaks of whatever project the token was
	// made through, and whoever holds a role there could ask for this project's audience.
	// Without it, the plain roles claim and a "roles" array are read.
	ProjectID string `toml:"project_id"`
	// PlainRoles reads the plain roles claim and the "roles" array beside ProjectID's. Only
	// for an issuer whose other projects are trusted as much as this one.
	PlainRoles bool `toml:"plain_roles"`

	// Roles are the roles that this issuer may grant; others in its tokens are ignored.
	Roles []access.Role `toml:"roles"`
	// Devices is a glob on the device ids that this issuer may name (path.Match). Required
	// with the role device.
	Devices string `toml:"devices"`
	// DeviceIDClaim holds the device id of a device's token after DeviceIDPrefix. Defaults
	// "client_id" and "device-".
	DeviceIDClaim  string  `toml:"device_id_claim"`
	DeviceIDPrefix *string `toml:"device_id_prefix"`

	// Subjects grants roles by "sub", for issuers without a roles claim.
	Subjects []Subject `toml:"subjects"`
}

// Subject grants roles to one subject of an issuer.
type Subject struct {
	Subject  string        `toml:"subject"` // for example "system:serviceaccount:fleet:operator"
	Roles    []access.Role `toml:"roles"`
	DeviceID string        `toml:"device_id"` // with the role device
}

// Values of the configuration that every program of the fleet writes alike.
type (
	Duration = tomlconfig.Duration
	URLs     = tomlconfig.URLs
)

// Load reads and validates a configuration file.
func Load(file string) (Config, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("callout configuration: %w", err)
	}
	cfg, err := Parse(raw)
	if err != nil {
		return Config{}, fmt.Errorf("callout configuration %s: %w", file, err)
	}
	return cfg, nil
}

// Parse reads, completes and validates a configuration. An unknown key is an error that
// names the key and its line.
func Parse(raw []byte) (Config, error) {
	cfg, err := tomlconfig.Decode[Config](raw)
	if err != nil {
		return Config{}, err
	}
	cfg.setDefaults()
	return cfg, cfg.Validate()
}

func (c *Config) setDefaults() {
	def(&c.Listen, ":8080")
	def(&c.Workers, 64)
	def(&c.Queue, 4096)
	def(&c.MaxAge, Duration(1500*time.Millisecond))
	def(&c.MaxSession, Duration(12*time.Hour))
	def(&c.ProbeInterval, Duration(10*time.Second))
	def(&c.NATS.User, "callout")
	if len(c.NATS.URL) == 0 {
		c.NATS.URL = URLs{"nats://127.0.0.1:4222"}
	}
	c.Accounts = c.Accounts.WithDefaults()
	c.Issuers = slices.Clone(c.Issuers)
	for i := range c.Issuers {
		def(&c.Issuers[i].DeviceIDClaim, "client_id")
		if c.Issuers[i].DeviceIDPrefix == nil {
			prefix := "device-"
			c.Issuers[i].DeviceIDPrefix = &prefix
		}
	}
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate names every key that is wrong, all in one error. It reads no file. Seed files
// are required here unless Options bring the seeds.
func (c Config) Validate() error {
	c.setDefaults()
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if c.Listen != "off" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			bad("listen", "%q is not host:port, :port or off", c.Listen)
		}
	}
	if c.Workers < 1 || c.Workers > 4096 {
		bad("workers", "%d is not between 1 and 4096", c.Workers)
	}
	if c.Queue < 1 || c.Queue > 1<<20 {
		bad("queue", "%d is not between 1 and %d", c.Queue, 1<<20)
	}
	if d := time.Duration(c.MaxAge); d < 10*time.Millisecond || d >= serverBudget {
		bad("max_age", "%v is not between 10ms and %v, the time that the server waits", d, serverBudget)
	}
	if d := time.Duration(c.MaxSession); d < 10*time.Second {
		bad("max_session", "%v is shorter than 10s", d)
	}
	if d := time.Duration(c.ProbeInterval); d < 10*time.Millisecond {
		bad("probe_interval", "%v is shorter than 10ms", d)
	}
	if err := c.Log.CheckLevel(); err != nil {
		bad("log.level", "%v", err)
	}
	if err := c.Log.CheckFormat(); err != nil {
		bad("log.format", "%v", err)
	}
	c.NATS.validate(bad)
	if len(c.Issuers) == 0 {
		bad("issuers", "none is configured, so nobody could sign in")
	}
	seen := map[string]bool{}
	for i, iss := range c.Issuers {
		at := fmt.Sprintf("issuers[%d].", i)
		iss.validate(func(key, format string, args ...any) { bad(at+key, format, args...) })
		if seen[iss.URL] {
			bad(at+"url", "%s is configured twice", iss.URL)
		}
		seen[iss.URL] = true
	}
	return errors.Join(errs...)
}

type complain func(key, format string, args ...any)

func (n NATS) validate(bad complain) {
	for _, raw := range n.URL {
		u, err := url.Parse(raw)
		switch {
		case err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme):
			bad("nats.url", "not of the form nats://host:port or tls://host:port")
		case u.User != nil:
			bad("nats.url", "holds a user or password; use user and password_file")
		case !n.Insecure && !n.encrypted(u) && !netaddr.IsLoopback(u.Hostname()):
			bad("nats.url", "%s is plaintext to a host that is not loopback, and tokens travel on it; use tls://, set nats.tls.ca, or insecure = true", raw)
		}
	}
	if n.Password != "" && n.PasswordFile != "" {
		bad("nats.password_file", "set beside password; keep one")
	}
	if (n.TLS.Cert == "") != (n.TLS.Key == "") {
		bad("nats.tls", "cert and key go together")
	}
}

func (n NATS) encrypted(u *url.URL) bool {
	return u.Scheme == "tls" || u.Scheme == "wss" || n.TLS.CA != "" || n.TLS.Cert != ""
}

func (iss Issuer) validate(bad complain) {
	if iss.URL == "" {
		bad("url", "is empty; set it to exactly what the tokens have in \"iss\"")
	}
	if iss.Audience == "" {
		bad("audience", "is empty; without one, tokens made for any other service would be accepted")
	}
	if len(iss.Roles) == 0 {
		bad("roles", "is empty: list the roles that this issuer may grant")
	}
	checkRoles(bad, "roles", iss.Roles)
	if _, err := path.Match(iss.Devices, "x"); err != nil {
		bad("devices", "%q is not a glob", iss.Devices)
	}
	if slices.Contains(iss.Roles, access.RoleDevice) && iss.Devices == "" {
		bad("devices", "is empty though the role device is granted: say which device ids this issuer may name, for example \"vm-*\"")
	}
	if iss.PlainRoles && iss.ProjectID == "" {
		bad("plain_roles", "has no effect without project_id: the plain claims are read then anyway")
	}
	subjects := map[string]bool{}
	for i, s := range iss.Subjects {
		key := fmt.Sprintf("subjects[%d]", i)
		if s.Subject == "" {
			bad(key+".subject", "is empty")
		}
		if subjects[s.Subject] {
			bad(key+".subject", "%q is listed twice", s.Subject)
		}
		subjects[s.Subject] = true
		if len(s.Roles) == 0 {
			bad(key+".roles", "is empty")
		}
		checkRoles(bad, key+".roles", s.Roles)
		for _, r := range s.Roles {
			if r.Known() && !slices.Contains(iss.Roles, r) {
				bad(key+".roles", "%q is not among the roles that this issuer may grant", r)
			}
		}
		if s.DeviceID == "" {
			continue
		}
		if !slices.Contains(s.Roles, access.RoleDevice) {
			bad(key+".device_id", "is set but roles lacks \"device\"")
		}
		if err := command.CheckDeviceID(s.DeviceID); err != nil {
			bad(key+".device_id", "%q is not a device id", s.DeviceID)
		} else if ok, _ := path.Match(iss.Devices, s.DeviceID); !ok {
			bad(key+".device_id", "%q is outside devices = %q", s.DeviceID, iss.Devices)
		}
	}
}

func checkRoles(bad complain, key string, roles []access.Role) {
	for _, r := range roles {
		if !r.Known() {
			bad(key, "%q is not a role; the roles are %v", r, access.Roles())
		}
	}
}

package credentials

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/harmony-fleet/fleet/internal/netaddr"
)

// The values of [Config.Type].
const (
	TypeShared     = "shared"
	TypeTokenFile  = "token-file"
	TypeZitadelKey = "zitadel-key"
	TypeKubernetes = "kubernetes"
)

// DefaultKubernetesTokenFile is where type kubernetes looks for its token:
// the mount path of a projected volume with the audience of the fleet.
const DefaultKubernetesTokenFile = "/var/run/secrets/fleet/token"

// Config is the [credentials] table of a TOML configuration. Keys that belong
// to another type than the chosen one are refused by Validate, so that a
// mistake does not pass in silence.
type Config struct {
	// Type is one of the Type constants. No default.
	Type string `toml:"type"`

	// User and Password are for type shared. PasswordFile, read anew each time,
	// takes the place of Password; exactly one of the two is needed.
	User         string `toml:"user,omitempty"`
	Password     string `toml:"password,omitempty" json:"-"`
	PasswordFile string `toml:"password_file,omitempty"`

	// TokenFile is for types token-file (needed) and kubernetes (default
	// DefaultKubernetesTokenFile). It is read anew each time.
	TokenFile string `toml:"token_file,omitempty"`

	// Issuer is, for type zitadel-key, the issuer's URL exactly as its tokens
	// name it. Plain http is refused unless the host is loopback or Insecure is set.
	Issuer string `toml:"issuer,omitempty"`
	// KeyFile is the machine key file that Zitadel's console gives. It is read
	// again for each new token, so it may be replaced at any time.
	KeyFile string `toml:"key_file,omitempty"`
	// ProjectID is the Zitadel project whose audience and roles are asked for.
	ProjectID string `toml:"project_id,omitempty"`
	// CAFile, in PEM, holds the only authorities trusted for the issuer. Empty:
	// the system's (loading those costs 4 to 5 MiB of resident memory).
	CAFile string `toml:"ca_file,omitempty"`
	// Insecure lets an issuer be reached over plain http beyond loopback.
	Insecure bool `toml:"insecure,omitempty"`

	// Account goes in the NATS user field beside a token: "ops" or "data" for
	// clients that may enter both, empty otherwise. Not for type shared.
	Account string `toml:"account,omitempty"`

	// Logger gets warnings (never secrets). Nil: none.
	Logger *slog.Logger `toml:"-" json:"-"`
}

// String shows everything but the password.
func (c Config) String() string {
	return fmt.Sprintf("credentials(type %q, user %q, password_file %q, token_file %q, issuer %q, key_file %q, project_id %q, ca_file %q, account %q)",
		c.Type, c.User, c.PasswordFile, c.TokenFile, c.Issuer, c.KeyFile, c.ProjectID, c.CAFile, c.Account)
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Validate says what is wrong with c, naming the key: "[credentials] key_file:
// …". It reads no file and calls nobody. Several faults are joined.
func (c Config) Validate() error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("[credentials] %s: %s", key, fmt.Sprintf(format, args...)))
	}
	var used map[string]bool // keys of the chosen type
	switch c.Type {
	case TypeShared:
		used = map[string]bool{"user": true, "password": true, "password_file": true}
		if c.User == "" {
			fault("user", "needed with type %q: give the NATS user name", c.Type)
		}
		switch {
		case c.Password == "" && c.PasswordFile == "":
			fault("password_file", "needed with type %q: give it or password", c.Type)
		case c.Password != "" && c.PasswordFile != "":
			fault("password_file", "given beside password: keep one of the two")
		}
	case TypeTokenFile:
		used = map[string]bool{"token_file": true, "account": true}
		if c.TokenFile == "" {
			fault("token_file", "needed with type %q: give the path of the file that holds the token", c.Type)
		}
	case TypeKubernetes:
		used = map[string]bool{"token_file": true, "account": true}
	case TypeZitadelKey:
		used = map[string]bool{"issuer": true, "key_file": true, "project_id": true, "ca_file": true, "insecure": true, "account": true}
		if c.Issuer == "" {
			fault("issuer", "needed with type %q: give the URL of the Zitadel instance", c.Type)
		} else if err := checkURL(c.Issuer, c.Insecure); err != nil {
			fault("issuer", "%v", err)
		}
		if c.KeyFile == "" {
			fault("key_file", "needed with type %q: give the path of the machine key file (JSON) made in Zitadel", c.Type)
		}
		switch {
		case c.ProjectID == "":
			fault("project_id", "needed with type %q: give the id of the Zitadel project", c.Type)
		case strings.ContainsAny(c.ProjectID, ": \t\r\n"):
			fault("project_id", "%q is no project id: use the number shown in Zitadel", c.ProjectID)
		}
	case "":
		fault("type", "missing: use one of %s, %s, %s, %s", TypeShared, TypeTokenFile, TypeZitadelKey, TypeKubernetes)
		return errors.Join(errs...)
	default:
		fault("type", "unknown type %q: use one of %s, %s, %s, %s", c.Type, TypeShared, TypeTokenFile, TypeZitadelKey, TypeKubernetes)
		return errors.Join(errs...)
	}
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"user", c.User != ""}, {"password", c.Password != ""}, {"password_file", c.PasswordFile != ""},
		{"token_file", c.TokenFile != ""}, {"issuer", c.Issuer != ""}, {"key_file", c.KeyFile != ""},
		{"project_id", c.ProjectID != ""}, {"ca_file", c.CAFile != ""}, {"insecure", c.Insecure}, {"account", c.Account != ""},
	} {
		if k.set && !used[k.name] {
			fault(k.name, "not used with type %q: remove it or change the type", c.Type)
		}
	}
	return errors.Join(errs...)
}

// New gives the source that cfg describes, or the error of cfg.Validate. Files
// are not looked at before the first Credential: they may appear later.
func New(cfg Config) (Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	switch cfg.Type {
	case TypeShared:
		if cfg.PasswordFile == "" {
			return Static(Credential{User: cfg.User, Password: cfg.Password}), nil
		}
		return &passwordFile{user: cfg.User, file: secretFile{key: "password_file", path: cfg.PasswordFile, log: log}}, nil
	case TypeTokenFile:
		return &tokenFile{account: cfg.Account, file: secretFile{key: "token_file", path: cfg.TokenFile, log: log}}, nil
	case TypeKubernetes:
		if cfg.TokenFile == "" {
			cfg.TokenFile = DefaultKubernetesTokenFile
		}
		// The kubelet writes projected tokens readable to the Pod's group or to
		// all, as the Pod's security context makes necessary: nothing to warn of.
		return &tokenFile{account: cfg.Account, file: secretFile{key: "token_file", path: cfg.TokenFile, log: log, shared: true}}, nil
	default:
		return newZitadelKey(cfg, log), nil
	}
}

// checkURL refuses what must not carry an assertion or a token.
func checkURL(raw string, insecure bool) error {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// The URL is not quoted: it may hold a password.
		return errors.New("not a URL of the form https://host[:port][/path]")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if insecure || netaddr.IsLoopback(u.Hostname()) {
			return nil
		}
		return fmt.Errorf("%s is plain http and not loopback: use https, or set insecure = true in a test network", raw)
	default:
		return fmt.Errorf("scheme %q: use https", u.Scheme)
	}
}

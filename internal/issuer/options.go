package issuer

import (
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Values that a zero [Options] stands for.
const (
	DefaultListen        = "127.0.0.1:0"
	DefaultProjectID     = "100000000000000001"
	DefaultOrgID         = "200000000000000001"
	DefaultOrgDomain     = "fleet.localhost"
	DefaultTokenLifetime = 12 * time.Hour // Zitadel's own default
)

// Signing algorithms.
const (
	ES256 = "ES256"
	RS256 = "RS256"
)

// Options says what [Start] makes. The zero value works: an issuer without
// users on a free port of the loopback interface. Nothing in it may change
// after Start.
type Options struct {
	// Listen is the TCP address. Default DefaultListen; port 0 is any free one.
	Listen string
	// TLSCert and TLSKey are PEM files. Both empty: plain http.
	TLSCert, TLSKey string
	// Issuer is the URL the issuer calls itself by, without a trailing slash.
	// Default: made from the address it listens on, which must be one address
	// then, not all of a machine's.
	Issuer string
	// ProjectID is the project on which users have roles. Default DefaultProjectID.
	ProjectID string
	// OrgID and OrgDomain stand in the roles claim. Defaults DefaultOrgID, DefaultOrgDomain.
	OrgID, OrgDomain string
	// TokenLifetime is how long tokens live, at least 1 s. Default DefaultTokenLifetime.
	TokenLifetime time.Duration
	// Algorithm signs tokens, and is the kind of new machine keys: ES256
	// (default) or RS256, whose keys take 0.1 to 0.2 s each to make.
	Algorithm string
	// KeyGrace is how long a key stays published after RotateKeys put another
	// in its place. Default: TokenLifetime, so that no token dies of it.
	KeyGrace time.Duration
	// SigningKeyFile keeps the signing keys (PEM, mode 0600) over a restart of
	// the process. Empty: in memory only.
	SigningKeyFile string
	// Users are there from the start; see also Server.AddUser.
	Users []User
	// Logger gets one line per token issued or refused, without tokens. Nil: none.
	Logger *slog.Logger
}

// User is a machine user. A device's is named "device-<id>" and has the role
// "device".
type User struct {
	// ID is the sub of tokens: digits. Default: 18 digits made from the name,
	// the same each time.
	ID string
	// Name is the client_id of tokens and of the client credentials grant:
	// letters, digits and "._@-", at most 128.
	Name string
	// Roles on Options.ProjectID.
	Roles []string
	// ClientSecret allows the client credentials grant. Empty: not allowed.
	ClientSecret string
	// KeyFile is a machine key file to accept, of this user id. Nil:
	// Server.KeyFile makes one when asked.
	KeyFile []byte
}

// String shows everything but the secrets.
func (u User) String() string {
	return fmt.Sprintf("user(%s %q roles %v)", u.ID, u.Name, u.Roles)
}

// GoString is String.
func (u User) GoString() string { return u.String() }

// LogValue is String.
func (u User) LogValue() slog.Value { return slog.StringValue(u.String()) }

var (
	userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._@-]{0,127}$`)
	digits   = regexp.MustCompile(`^[0-9]{1,32}$`)
	plainID  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

func (u User) withDefaults() (User, error) {
	if !userName.MatchString(u.Name) {
		return u, fmt.Errorf(`user name %q: use 1 to 128 letters, digits and "._@-"`, u.Name)
	}
	if u.ID == "" {
		h := fnv.New64a()
		h.Write([]byte(u.Name))
		// 18 digits that begin with 3, as Zitadel's ids look.
		u.ID = fmt.Sprintf("3%017d", h.Sum64()%1e17)
	}
	if !digits.MatchString(u.ID) {
		return u, fmt.Errorf("user %q: id %q: use digits only, as Zitadel does", u.Name, u.ID)
	}
	for _, r := range u.Roles {
		if r == "" || strings.ContainsAny(r, " \t\r\n") {
			return u, fmt.Errorf("user %q: role %q: use a word", u.Name, r)
		}
	}
	return u, nil
}

func (o Options) withDefaults() (Options, error) {
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&o.Listen, DefaultListen)
	def(&o.ProjectID, DefaultProjectID)
	def(&o.OrgID, DefaultOrgID)
	def(&o.OrgDomain, DefaultOrgDomain)
	def(&o.Algorithm, ES256)
	if o.TokenLifetime == 0 {
		o.TokenLifetime = DefaultTokenLifetime
	}
	if o.KeyGrace == 0 {
		o.KeyGrace = o.TokenLifetime
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var errs []error
	if host, _, err := net.SplitHostPort(o.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen address %q: use host:port, such as %s", o.Listen, DefaultListen))
	} else if ip := net.ParseIP(host); o.Issuer == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
		errs = append(errs, fmt.Errorf("listen address %q is all of this machine's addresses: set the issuer URL that clients use", o.Listen))
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		errs = append(errs, errors.New("tls: certificate and key go together: give both or neither"))
	}
	if o.Issuer != "" {
		u, err := url.Parse(o.Issuer)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") ||
			u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(o.Issuer, "/") {
			errs = append(errs, errors.New("issuer: use a URL of the form https://host[:port][/path] without a trailing slash"))
		}
	}
	if !plainID.MatchString(o.ProjectID) {
		errs = append(errs, fmt.Errorf("project id %q: use digits, as Zitadel does", o.ProjectID))
	}
	if o.Algorithm != ES256 && o.Algorithm != RS256 {
		errs = append(errs, fmt.Errorf("algorithm %q: use %s or %s", o.Algorithm, ES256, RS256))
	}
	if o.TokenLifetime < time.Second {
		errs = append(errs, fmt.Errorf("token lifetime %v: use at least 1s", o.TokenLifetime))
	}
	if o.KeyGrace < 0 {
		errs = append(errs, fmt.Errorf("key grace %v: use a positive duration", o.KeyGrace))
	}
	return o, errors.Join(errs...)
}

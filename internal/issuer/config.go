package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/harmony-fleet/fleet/internal/atomicfile"
	"github.com/harmony-fleet/fleet/internal/tomlconfig"
)

// Config is the TOML configuration of fleet-oidc. An unknown key is an error.
//
//	listen = "127.0.0.1:8080"                # default 127.0.0.1:0
//	issuer = "http://127.0.0.1:8080"         # default: made from listen
//	project_id = "100000000000000001"        # default
//	org_id = "200000000000000001"            # default
//	org_domain = "fleet.localhost"           # default
//	token_lifetime = "12h"                   # default
//	key_grace = "12h"                        # default: token_lifetime
//	algorithm = "ES256"                      # default; or RS256
//	signing_key_file = "/var/lib/oidc/signing.pem"   # default: in memory only
//	keys_dir = "/var/lib/oidc/keys"          # machine key files are read from or made in here, one for each user
//	[tls]
//	cert = "/etc/oidc/tls.crt"
//	key = "/etc/oidc/tls.key"
//	[[users]]
//	name = "device-vm-00"
//	id = "300000000000000001"                # default: made from the name
//	roles = ["device"]
//	client_secret = "…"                      # default: no client credentials grant
type Config struct {
	Listen         string              `toml:"listen"`
	Issuer         string              `toml:"issuer"`
	ProjectID      string              `toml:"project_id"`
	OrgID          string              `toml:"org_id"`
	OrgDomain      string              `toml:"org_domain"`
	TokenLifetime  tomlconfig.Duration `toml:"token_lifetime"`
	KeyGrace       tomlconfig.Duration `toml:"key_grace"`
	Algorithm      string              `toml:"algorithm"`
	SigningKeyFile string              `toml:"signing_key_file"`
	KeysDir        string              `toml:"keys_dir"`
	TLS            tlsConfig           `toml:"tls"`
	Users          []userConfig        `toml:"users"`
}

type tlsConfig struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

type userConfig struct {
	Name         string   `toml:"name"`
	ID           string   `toml:"id"`
	Roles        []string `toml:"roles"`
	ClientSecret string   `toml:"client_secret"`
}

const maxConfig = 1 << 20

// LoadConfig reads and checks a configuration file. Errors name the key.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxConfig {
		return Config{}, fmt.Errorf("configuration: %s is larger than 1 MiB", path)
	}
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %s: %w", path, err)
	}
	return c, nil
}

func parseConfig(data []byte) (Config, error) {
	c, err := tomlconfig.Decode[Config](data)
	if err != nil {
		return Config{}, err
	}
	if _, err := c.options(nil).withDefaults(); err != nil {
		return Config{}, err
	}
	dir := newDirectory(ES256) // only to check the users
	for _, u := range c.Users {
		if err := dir.add(u.user()); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

func (u userConfig) user() User {
	return User{ID: u.ID, Name: u.Name, Roles: u.Roles, ClientSecret: u.ClientSecret}
}

func (c Config) options(log *slog.Logger) Options {
	return Options{
		Listen: c.Listen, Issuer: c.Issuer,
		TLSCert: c.TLS.Cert, TLSKey: c.TLS.Key,
		ProjectID: c.ProjectID, OrgID: c.OrgID, OrgDomain: c.OrgDomain,
		TokenLifetime: time.Duration(c.TokenLifetime), KeyGrace: time.Duration(c.KeyGrace),
		Algorithm: c.Algorithm, SigningKeyFile: c.SigningKeyFile, Logger: log,
	}
}

// Run is what fleet-oidc does: it starts the issuer, reads or makes the
// machine key files, and serves until ctx ends. Each value on rotate rotates
// the signing key. Log lines hold no secrets.
func Run(ctx context.Context, c Config, log *slog.Logger, rotate <-chan os.Signal) error {
	log.Warn("fleet-oidc is a fixture for tests and demos, not for production: " +
		"its configuration holds the users, their roles and their secrets")
	opts := c.options(log)
	for _, cu := range c.Users {
		u := cu.user()
		if c.KeysDir != "" {
			var err error
			if u.KeyFile, err = readKeyFile(c.KeysDir, u.Name, log); err != nil {
				return err
			}
		}
		opts.Users = append(opts.Users, u)
	}
	srv, err := Start(ctx, opts)
	if err != nil {
		return err
	}
	defer srv.Close()
	if c.KeysDir != "" {
		if err := srv.writeKeyFiles(c.KeysDir, c.Users, log); err != nil {
			return err
		}
	}
	if addr, err := netip.ParseAddrPort(srv.Addr()); err == nil && !addr.Addr().IsLoopback() && c.TLS.Cert == "" {
		log.Warn("listening on plain http beyond loopback: whoever can see the network can read the tokens: set [tls] cert and key", "listen", srv.Addr())
	}
	log.Info("issuer ready", "issuer", srv.URL(), "listen", srv.Addr(), "users", len(opts.Users), "project_id", srv.ProjectID())
	for {
		select {
		case <-ctx.Done():
			log.Info("issuer stopping")
			return nil
		case <-rotate:
			if err := srv.RotateKeys(); err != nil {
				log.Error("signing key not rotated: the old one goes on", "error", err)
			}
		}
	}
}

func keyFilePath(dir, user string) string { return filepath.Join(dir, user+".json") }

// readKeyFile gives nil for a file that is not there yet.
func readKeyFile(dir, user string, log *slog.Logger) ([]byte, error) {
	path := keyFilePath(dir, user)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keys_dir: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxBody {
		return nil, fmt.Errorf("keys_dir: %s is not a machine key file: remove it", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("machine key file can be read by other users: set its mode to 0600", "file", path, "mode", fmt.Sprintf("%04o", mode))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keys_dir: %w", err)
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("keys_dir: %s is empty: remove it to have a new key made", path)
	}
	return data, nil
}

func (s *Server) writeKeyFiles(dir string, users []userConfig, log *slog.Logger) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keys_dir: %w: choose a directory that can be written", err)
	}
	for _, u := range users {
		path := keyFilePath(dir, u.Name)
		if _, err := os.Stat(path); err == nil {
			continue // readKeyFile has taken it
		}
		data, err := s.KeyFile(u.Name)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(path, data); err != nil {
			return fmt.Errorf("keys_dir: %w: choose a directory that can be written", err)
		}
		log.Info("machine key file written", "user", u.Name, "file", path)
	}
	return nil
}

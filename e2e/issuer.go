package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pelletier/go-toml/v2"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/issuer"
	"github.com/harmony-fleet/fleet/internal/pki"
)

// Issuer makes the tokens of callout mode: [Fixture] or [External].
type Issuer interface {
	// prepare gives what the others need to know, and the Pod to run, if there is one.
	prepare(ctx context.Context, s *Stack) (*identity, error)
	programs() []image.Program
}

// identity is an issuer as the rest of the stack sees it.
type identity struct {
	url, projectID string
	ca             []byte // PEM of who signs its certificate; nil: the system's authorities
	part           *part  // nil: it runs elsewhere

	// adminToken is a token with the role fleet-admin.
	adminToken string
	// deviceKey makes a device known to the issuer and gives its machine key file.
	deviceKey func(ctx context.Context, device string) ([]byte, error)
	// deviceToken is a token for a device where the issuer cannot be reached from
	// outside of the cluster; nil where it can.
	deviceToken func(device string) (string, error)
}

// Fixture is the issuer fleet-oidc as a Pod of the stack. It speaks as Zitadel does
// for machine users: agents and callout cannot tell.
type Fixture struct{}

func (Fixture) programs() []image.Program { return []image.Program{programOIDC} }

const adminUser = "admin"

func deviceUser(device string) string { return "device-" + device }

// prepare makes users, keys and the admin's token with an issuer in this process
// that has the signing key of the Pod's, so that nothing has to wait for the Pod.
func (Fixture) prepare(ctx context.Context, s *Stack) (*identity, error) {
	url := fmt.Sprintf("https://%s:%d", s.addresses[partIssuer], issuerPort)
	signing := filepath.Join(s.dir, "signing.pem")
	users := []issuer.User{{Name: adminUser, Roles: []string{string(access.RoleAdmin)}}}
	for _, id := range s.DeviceIDs {
		users = append(users, issuer.User{Name: deviceUser(id), Roles: []string{string(access.RoleDevice)}})
	}
	srv, err := issuer.Start(ctx, issuer.Options{Issuer: url, SigningKeyFile: signing, Users: users})
	if err != nil {
		return nil, fmt.Errorf("prepare the issuer: %w", err)
	}
	srv.Close() // it goes on making keys and tokens
	key, err := os.ReadFile(signing)
	if err != nil {
		return nil, fmt.Errorf("prepare the issuer: %w", err)
	}
	pair, err := s.authority.Issue(pki.Request{Hosts: s.hosts(partIssuer)})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"signing.pem": key, "tls.crt": pair.Cert, "tls.key": pair.Key}
	var list []map[string]any
	for _, u := range users {
		list = append(list, map[string]any{"name": u.Name, "roles": u.Roles})
		if files[u.Name+".json"], err = srv.KeyFile(u.Name); err != nil {
			return nil, err
		}
	}
	files["fleet-oidc.toml"], err = toml.Marshal(map[string]any{
		"listen": fmt.Sprintf(":%d", issuerPort), "issuer": url,
		"signing_key_file": filesDir + "/signing.pem", "keys_dir": filesDir,
		"tls":   map[string]any{"cert": filesDir + "/tls.crt", "key": filesDir + "/tls.key"},
		"users": list,
	})
	if err != nil {
		return nil, err
	}
	admin, err := srv.Mint(adminUser, issuer.MintOptions{})
	if err != nil {
		return nil, err
	}
	return &identity{
		url: url, projectID: srv.ProjectID(), ca: s.authority.CertPEM(), adminToken: admin,
		part: &part{name: partIssuer, image: s.images[programOIDC.Name], args: []string{"--config", filesDir + "/fleet-oidc.toml"}, files: files},
		deviceKey: func(_ context.Context, device string) ([]byte, error) {
			return srv.KeyFile(deviceUser(device))
		},
		deviceToken: func(device string) (string, error) {
			return srv.Mint(deviceUser(device), issuer.MintOptions{})
		},
	}, nil
}

// External is an issuer that somebody else runs, Zitadel for example. Its machine
// user of KeyFile must have the role fleet-admin in the project, and both the
// cluster and this machine must reach it.
type External struct {
	// URL is the issuer's URL, exactly as its tokens name it. https only.
	URL string
	// ProjectID is the project that audience and roles are of.
	ProjectID string
	// KeyFile is the path of the machine key file of a user with the role fleet-admin.
	KeyFile string
	// CAFile is a PEM file of who signs the issuer's certificate. Empty: the system's
	// authorities; images have none of those, so that agents in Pods need it.
	CAFile string
	// DeviceKey makes a machine user named "device-<id>" with the role device and
	// returns its machine key file. It is called once for each device, for several at
	// once, and must return by the end of ctx.
	DeviceKey func(ctx context.Context, device string) ([]byte, error)
}

func (External) programs() []image.Program { return nil }

func (e External) prepare(ctx context.Context, s *Stack) (*identity, error) {
	if e.DeviceKey == nil {
		return nil, errors.New("external issuer: DeviceKey is nil: devices need a machine user each; give a function that makes them")
	}
	src, err := credentials.New(credentials.Config{
		Type: credentials.TypeZitadelKey, Issuer: e.URL, KeyFile: e.KeyFile, ProjectID: e.ProjectID, CAFile: e.CAFile,
	})
	if err != nil {
		return nil, fmt.Errorf("external issuer: %w", err)
	}
	admin, err := src.Credential(ctx)
	if err != nil {
		return nil, fmt.Errorf("external issuer %s: no token for the user of %s: %w", e.URL, e.KeyFile, err)
	}
	id := &identity{url: e.URL, projectID: e.ProjectID, adminToken: admin.Token, deviceKey: e.DeviceKey}
	if e.CAFile != "" {
		if id.ca, err = os.ReadFile(e.CAFile); err != nil {
			return nil, fmt.Errorf("external issuer: %w", err)
		}
	}
	return id, nil
}

// uidOf is the uid of whom a token speaks of, unverified: the callout verifies it.
func uidOf(token string) (string, error) {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil {
		return "", fmt.Errorf("the issuer's token cannot be read: %w", err)
	}
	return command.UID(command.UserName(claims.Issuer, claims.Subject)), nil
}

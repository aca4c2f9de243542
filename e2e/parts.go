package e2e

import (
	"crypto/rand"
	"fmt"

	"github.com/pelletier/go-toml/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/access"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/callout"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/pki"
)

// Names of parts, of their Pods, Secrets and Services.
const (
	partNATS    = "nats"
	partCallout = "fleet-callout"
	partIssuer  = "fleet-oidc"

	// serviceDevices is NATS as devices reach it: not before it is provisioned.
	serviceDevices = "nats-devices"
)

const (
	natsPort    = 4222
	issuerPort  = 8443
	calloutPort = 8080
)

var (
	programAgent   = image.Program{Name: "fleet-agent", Package: "./cmd/fleet-agent"}
	programCallout = image.Program{Name: "fleet-callout", Package: "./cmd/fleet-callout"}
	programOIDC    = image.Program{Name: "fleet-oidc", Package: "./cmd/fleet-oidc"}
	programNATS    = image.Program{Name: "nats-server", Package: "github.com/nats-io/nats-server/v2"}
)

// secrets are the passwords of a stack's static users.
type secrets struct {
	ops, data, device, callout, system string
}

func newSecrets() secrets {
	return secrets{ops: rand.Text(), data: rand.Text(), device: rand.Text(), callout: rand.Text(), system: rand.Text()}
}

// String and GoString keep passwords out of messages.
func (secrets) String() string   { return "secrets(redacted)" }
func (secrets) GoString() string { return "secrets(redacted)" }

// user is the static user of an account in userpass mode.
func (s secrets) user(account access.Account) (name, password string) {
	switch account {
	case access.Data:
		return broker.UserData, s.data
	case access.Fleet:
		return broker.UserDevice, s.device
	default:
		return broker.UserOps, s.ops
	}
}

// hosts are the names and addresses by which a Service is called.
func (s *Stack) hosts(services ...string) []string {
	var hosts []string
	for _, name := range services {
		hosts = append(hosts, name, name+"."+s.Namespace, name+"."+s.Namespace+".svc", name+"."+s.Namespace+".svc.cluster.local", s.addresses[name])
	}
	return hosts
}

func (s *Stack) natsPart() (part, error) {
	hosts := append(s.hosts(partNATS, serviceDevices), "localhost", "127.0.0.1", "::1")
	pair, err := s.authority.Issue(pki.Request{Hosts: append(hosts, s.cluster.NodeAddresses()...)})
	if err != nil {
		return part{}, err
	}
	cfg := broker.Config{
		Host: "0.0.0.0", Port: natsPort, StoreDir: stateDir + "/jetstream",
		TLS:            &broker.TLS{CertFile: filesDir + "/tls.crt", KeyFile: filesDir + "/tls.key"},
		SystemPassword: s.secrets.system,
	}
	if s.opts.AuthMode == UserPass {
		cfg.UserPass = &broker.UserPass{Ops: s.secrets.ops, Data: s.secrets.data, Device: s.secrets.device}
	} else {
		keys, err := s.seeds.Public()
		if err != nil {
			return part{}, err
		}
		cfg.Callout = &broker.Callout{Issuer: keys.Issuer, XKey: keys.XKey, Password: s.secrets.callout}
	}
	text, err := cfg.Render()
	if err != nil {
		return part{}, err
	}
	return part{
		name: partNATS, image: s.images[programNATS.Name], args: []string{"-c", filesDir + "/nats.conf"},
		files: map[string][]byte{"nats.conf": []byte(text), "tls.crt": pair.Cert, "tls.key": pair.Key},
	}, nil
}

// calloutPart is the callout. cluster is the cluster's own issuer, or nil.
func (s *Stack) calloutPart(cluster map[string]any) (part, error) {
	iss := map[string]any{
		"url": s.identity.url, "audience": s.identity.projectID, "project_id": s.identity.projectID,
		"roles": access.Roles(), "devices": "*-" + s.Namespace,
	}
	files := map[string][]byte{
		"ca.pem": s.authority.CertPEM(), callout.IssuerSeedFile: s.seeds.Issuer, callout.XKeySeedFile: s.seeds.XKey,
		"callout.password": []byte(s.secrets.callout),
	}
	if s.identity.ca != nil {
		files["issuer-ca.pem"] = s.identity.ca
		iss["ca_file"] = filesDir + "/issuer-ca.pem"
	}
	issuers := []any{iss}
	var edit func(*corev1.PodSpec)
	if cluster != nil {
		issuers, edit = append(issuers, cluster), callsCluster
	}
	text, err := toml.Marshal(map[string]any{
		"listen": fmt.Sprintf(":%d", calloutPort),
		"nats": map[string]any{
			"url": natsURL(s.addresses[partNATS], natsPort), "user": broker.UserCallout,
			"password_file": filesDir + "/callout.password", "tls": map[string]any{"ca": filesDir + "/ca.pem"},
		},
		"signing": map[string]any{
			"issuer_seed_file": filesDir + "/" + callout.IssuerSeedFile, "xkey_seed_file": filesDir + "/" + callout.XKeySeedFile,
		},
		"issuers": issuers,
	})
	if err != nil {
		return part{}, fmt.Errorf("configuration of the callout: %w", err)
	}
	files["fleet-callout.toml"] = text
	return part{
		name: partCallout, image: s.images[programCallout.Name], args: []string{"--config", filesDir + "/fleet-callout.toml"}, files: files, edit: edit,
	}, nil
}

// agentFiles are the configuration of a device's agent and the files that it names,
// which will be in dir. login is its [credentials] table.
func (s *Stack) agentFiles(device, dir, state, url string, runtime map[string]any, login map[string]any) (map[string][]byte, error) {
	agent := map[string]any{"device_id": device, "state_dir": state, "runtime_enabled": runtime != nil, "stop_timeout": "500ms"}
	cfg := map[string]any{
		"agent": agent,
		// Nothing has to be spread out in time: the broker has few devices.
		"nats":        map[string]any{"url": url, "tls": map[string]any{"ca": dir + "/ca.pem"}, "retry_min": "50ms", "retry_max": "200ms"},
		"credentials": login,
	}
	if runtime != nil {
		cfg["runtime"] = runtime
	}
	text, err := toml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("configuration of agent %s: %w", device, err)
	}
	return map[string][]byte{"fleet-agent.toml": text, "ca.pem": s.authority.CertPEM()}, nil
}

// sharedLogin is what all devices sign in with in userpass mode.
func (s *Stack) sharedLogin() map[string]any {
	user, password := s.secrets.user(access.Fleet)
	return map[string]any{"type": credentials.TypeShared, "user": user, "password": password}
}

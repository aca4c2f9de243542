package e2e

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/harmony-fleet/fleet/e2e/image"
	"github.com/harmony-fleet/fleet/internal/access"
)

// Component is a further part of the system, such as the Kubernetes operator. It
// runs as one Pod, which is made again when it is deleted.
type Component struct {
	// Name is that of Pod and Secret, a DNS label.
	Name string
	// Program is what runs.
	Program image.Program
	// Args are the program's arguments.
	Args []string
	// Files are put below /etc/fleet, by name; beside them is ca.pem, who signs the
	// broker's certificate. nil: none.
	Files func(Site) (map[string][]byte, error)
	// Prepare makes what the component needs in the cluster, such as a ServiceAccount
	// with rights, before its Pod is made. What is not in the namespace stays when the
	// namespace goes. nil: nothing.
	Prepare func(ctx context.Context, cluster *rest.Config, site Site) error
	// Roles are what the component may do in the fleet, "fleet-controller" for example.
	// Its Pod runs as a ServiceAccount of the component's name, which Prepare makes; in
	// callout mode that ServiceAccount has the roles, by the cluster's own issuer, and
	// its token is where credentials of type kubernetes look for it. Empty: none.
	Roles []string
	// Edit changes the Pod before it is made, for example its ServiceAccount. nil: no.
	Edit func(*corev1.PodSpec)
}

// Site is where a component runs.
type Site struct {
	// Namespace is the stack's.
	Namespace string
	// NATSURL is the broker as Pods reach it.
	NATSURL string
	// Token is one with the role fleet-admin; empty in userpass mode.
	Token string
	// User and Password are those of the data account in userpass mode; empty in
	// callout mode.
	User, Password string
}

func (s *Stack) startComponent(ctx context.Context, c Component) error {
	site := Site{Namespace: s.Namespace, NATSURL: natsURL(s.addresses[partNATS], natsPort), Token: s.AdminToken}
	if s.opts.AuthMode == UserPass {
		site.User, site.Password = s.secrets.user(access.Data)
	}
	if c.Prepare != nil {
		if err := c.Prepare(ctx, rest.CopyConfig(s.kube.config), site); err != nil {
			return fmt.Errorf("prepare component %s: %w", c.Name, err)
		}
	}
	files := map[string][]byte{}
	if c.Files != nil {
		made, err := c.Files(site)
		if err != nil {
			return fmt.Errorf("files of component %s: %w", c.Name, err)
		}
		for name, content := range made {
			files[name] = content
		}
	}
	files["ca.pem"] = s.authority.CertPEM()
	return s.createPart(ctx, part{name: c.Name, image: s.images[c.Program.Name], args: c.Args, files: files, edit: func(spec *corev1.PodSpec) {
		if len(c.Roles) > 0 {
			spec.ServiceAccountName = c.Name
			if s.opts.AuthMode == Callout {
				signsIn(spec)
			}
		}
		if c.Edit != nil {
			c.Edit(spec)
		}
	}})
}

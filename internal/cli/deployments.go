package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

type deploymentsCommand struct {
	app      *app
	selector []string
}

func newDeploymentsCommand(a *app) *cobra.Command {
	d := &deploymentsCommand{app: a}
	cmd := &cobra.Command{
		Use:   "deployments [DEPLOYMENT] [-l k=v]",
		Short: "Say where each deployment stands on the devices",
		Long: `Sums up what devices last reported of their deployments, with Kubernetes or without. With a
DEPLOYMENT it lists the devices that have it. A device that is offline is counted by what it
said last, and is not ready.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%d deployments: say one, or none to sum up all of them", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd.Context(), args) },
	}
	cmd.Flags().StringArrayVarP(&d.selector, "selector", "l", nil, "devices whose labels match `k=v,k2=v2`")
	return cmd
}

// deploymentSum is a deployment as -o json prints it. Its numbers are those of a
// Deployment's status in Kubernetes, of the devices that report it.
type deploymentSum struct {
	Deployment string                `json:"deployment"`
	Devices    int                   `json:"devices"`
	Ready      int                   `json:"ready"`
	Rejected   int                   `json:"rejected"`
	Failed     int                   `json:"failed"` // the rejected ones included
	Offline    int                   `json:"offline"`
	Phases     map[command.Phase]int `json:"phases"`
}

// deploymentOn is a deployment on one device, as -o json prints it.
type deploymentOn struct {
	Deployment string        `json:"deployment"`
	DeviceID   string        `json:"device_id"`
	Online     bool          `json:"online"`
	Ready      bool          `json:"ready"`
	Phase      command.Phase `json:"phase"`
	Revision   uint64        `json:"revision"`
	Message    string        `json:"message,omitempty"`
}

func (c *deploymentsCommand) run(ctx context.Context, args []string) error {
	selector, err := parseSelector(c.selector)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		if err := command.CheckDeploymentName(args[0]); err != nil {
			return rejected("DEPLOYMENT: %v", err)
		}
	}
	cl, _, done, err := c.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	devices, err := cl.Devices(ctx, selector)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		return c.one(devices, args[0])
	}
	return c.all(devices)
}

func (c *deploymentsCommand) all(devices []client.Device) error {
	sums := map[string]*deploymentSum{}
	for _, d := range devices {
		for name, s := range deploymentsOf(d) {
			sum := sums[name]
			if sum == nil {
				sum = &deploymentSum{Deployment: name, Phases: map[command.Phase]int{}}
				sums[name] = sum
			}
			sum.add(d.Online, s)
		}
	}
	if len(sums) == 0 && !c.app.json() {
		c.app.say("no device reports a deployment")
		return nil
	}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		s := sums[name]
		if c.app.json() {
			if err := c.app.writeJSON(s); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{name, fmt.Sprint(s.Devices), fmt.Sprint(s.Ready), fmt.Sprint(s.Rejected), fmt.Sprint(s.Failed), fmt.Sprint(s.Offline), phasesText(s.Phases)})
	}
	if c.app.json() {
		return nil
	}
	return c.app.table([]string{"DEPLOYMENT", "DEVICES", "READY", "REJECTED", "FAILED", "OFFLINE", "PHASES"}, rows)
}

func (c *deploymentsCommand) one(devices []client.Device, name string) error {
	var rows [][]string
	found := false
	for _, d := range devices {
		s, ok := deploymentsOf(d)[name]
		if !ok {
			continue
		}
		found = true
		on := deploymentOn{Deployment: name, DeviceID: d.ID, Online: d.Online, Ready: d.Online && s.Phase.AsDesired(), Phase: s.Phase, Revision: s.Revision, Message: s.Fault()}
		if c.app.json() {
			if err := c.app.writeJSON(on); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{d.ID, yesNo(on.Online), yesNo(on.Ready), string(on.Phase), fmt.Sprint(on.Revision), orDash(on.Message)})
	}
	if !found {
		return &command.Error{Outcome: command.OutcomeFailed, Message: "no device reports a deployment " + name + "; see fleet deployments"}
	}
	if c.app.json() {
		return nil
	}
	return c.app.table([]string{"DEVICE", "ONLINE", "READY", "PHASE", "REVISION", "MESSAGE"}, rows)
}

func (s *deploymentSum) add(online bool, d command.DeploymentStatus) {
	s.Devices++
	s.Phases[d.Phase]++
	for n, when := range map[*int]bool{
		&s.Ready: online && d.Phase.AsDesired(), &s.Offline: !online, &s.Rejected: d.Phase == command.PhaseRejected,
		&s.Failed: d.Phase == command.PhaseRejected || d.Phase == command.PhaseFailed,
	} {
		if when {
			*n++
		}
	}
}

func deploymentsOf(d client.Device) map[string]command.DeploymentStatus {
	if d.Status == nil {
		return nil
	}
	return d.Status.Deployments
}

func phasesText(phases map[command.Phase]int) string {
	var parts []string
	for _, phase := range slices.Sorted(maps.Keys(phases)) {
		parts = append(parts, fmt.Sprintf("%d %s", phases[phase], phase))
	}
	return strings.Join(parts, ", ")
}

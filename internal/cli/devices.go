package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

type devicesCommand struct {
	app      *app
	selector []string
}

func newDevicesCommand(a *app) *cobra.Command {
	d := &devicesCommand{app: a}
	cmd := &cobra.Command{
		Use:   "devices [DEVICE] [-l k=v]",
		Short: "List devices, or show all that is known of one",
		Long: `Lists every device that ever reported, as the broker last heard of it. With a DEVICE it
shows all of that one; with -o json also its stored status and heartbeat documents.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd.Context(), args) },
	}
	cmd.Flags().StringArrayVarP(&d.selector, "selector", "l", nil, "devices whose labels match `k=v,k2=v2`")
	return cmd
}

// deviceLine is a device as -o json prints it.
type deviceLine struct {
	DeviceID        string               `json:"device_id"`
	Online          bool                 `json:"online"`
	LastHeartbeat   *time.Time           `json:"last_heartbeat,omitempty"`       // by the broker's clock
	LastHeartbeatS  *float64             `json:"last_heartbeat_age_s,omitempty"` // seconds
	AgentVersion    string               `json:"agent_version,omitempty"`
	Runtime         command.RuntimeState `json:"runtime,omitempty"`
	DesiredRevision uint64               `json:"desired_revision"`
	Labels          map[string]string    `json:"labels"`
	Conditions      []command.Condition  `json:"conditions,omitempty"`
	Fault           string               `json:"fault,omitempty"`

	// Of a single device only.
	StatusAt  *time.Time         `json:"status_at,omitempty"` // by the broker's clock
	Status    *command.Status    `json:"status,omitempty"`
	Heartbeat *command.Heartbeat `json:"heartbeat,omitempty"`
}

func lineOf(d client.Device) deviceLine {
	line := deviceLine{DeviceID: d.ID, Online: d.Online, Labels: d.Labels, Fault: d.Fault}
	if line.Labels == nil {
		line.Labels = map[string]string{}
	}
	if !d.HeartbeatAt.IsZero() {
		at := d.HeartbeatAt.UTC()
		line.LastHeartbeat = &at
	}
	if d.LastSeen >= 0 {
		s := d.LastSeen.Seconds()
		line.LastHeartbeatS = &s
	}
	if d.Status != nil {
		line.AgentVersion, line.Runtime = d.Status.AgentVersion, d.Status.Runtime
		line.DesiredRevision, line.Conditions = d.Status.DesiredRevision, d.Status.Conditions
	}
	return line
}

func (c *devicesCommand) run(ctx context.Context, args []string) error {
	selector, err := parseSelector(c.selector)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		if len(selector) > 0 {
			return rejected("say a DEVICE or -l, not both")
		}
		if err := command.CheckDeviceID(args[0]); err != nil {
			return err
		}
	}
	cl, _, done, err := c.app.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	if len(args) == 1 {
		d, err := cl.Device(ctx, args[0])
		if err != nil {
			return err
		}
		return c.one(d)
	}
	list, err := cl.Devices(ctx, selector)
	if err != nil {
		return err
	}
	return c.list(list, len(selector) > 0)
}

func (c *devicesCommand) list(devices []client.Device, selected bool) error {
	if c.app.json() {
		for _, d := range devices {
			if err := c.app.writeJSON(lineOf(d)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(devices) == 0 {
		if selected {
			c.app.say("no device has these labels; see fleet devices")
		} else {
			c.app.say("no device ever reported")
		}
		return nil
	}
	rows := make([][]string, 0, len(devices))
	for _, d := range devices {
		l := lineOf(d)
		rows = append(rows, []string{
			d.ID, yesNo(d.Online), heartbeatAge(d), orDash(l.AgentVersion), orDash(string(l.Runtime)),
			fmt.Sprint(l.DesiredRevision), orDash(phaseCounts(d.Status)), labelText(d.Labels), orDash(troubles(l)),
		})
	}
	return c.app.table([]string{"DEVICE", "ONLINE", "LAST HEARTBEAT", "VERSION", "RUNTIME", "REVISION", "DEPLOYMENTS", "LABELS", "CONDITIONS"}, rows)
}

// phaseCounts sums deployments up, as in "2 running, 1 backoff".
func phaseCounts(s *command.Status) string {
	if s == nil {
		return ""
	}
	counts := map[command.Phase]int{}
	for _, d := range s.Deployments {
		counts[d.Phase]++
	}
	var parts []string
	for _, phase := range slices.SortedFunc(maps.Keys(counts), func(a, b command.Phase) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	}) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[phase], phase))
	}
	return strings.Join(parts, ", ")
}

// serviceText is where a service stands, on one line.
func serviceText(deployment, name string, s command.ServiceStatus) string {
	text := fmt.Sprintf("%s/%s: %s", deployment, name, s.Phase)
	if s.Progress != "" {
		text += " (" + s.Progress + ")"
	}
	text += ", image " + s.Image
	if s.ContainerID != "" {
		text += fmt.Sprintf(", container %.12s", s.ContainerID)
	}
	if s.Health != "" {
		text += ", " + s.Health
	}
	if s.Restarts > 0 {
		text += fmt.Sprintf(", restarted %d times", s.Restarts)
	}
	if s.LastError != "" {
		text += ": " + s.LastError
	}
	return text
}

// troubles names the conditions that hold, and what could not be read.
func troubles(l deviceLine) string {
	var names []string
	for _, cond := range l.Conditions {
		switch {
		case cond.Type == command.ConditionReady && !cond.Status:
			names = append(names, "NotReady")
		case cond.Type != command.ConditionReady && cond.Status:
			names = append(names, cond.Type)
		}
	}
	if l.Fault != "" {
		names = append(names, "Unreadable")
	}
	return strings.Join(names, ",")
}

func (c *devicesCommand) one(d client.Device) error {
	line := lineOf(d)
	if c.app.json() {
		if !d.StatusAt.IsZero() {
			at := d.StatusAt.UTC()
			line.StatusAt = &at
		}
		line.Status, line.Heartbeat = d.Status, d.Heartbeat
		return c.app.writeJSON(line)
	}
	rows := [][]string{
		{"device", d.ID}, {"online", yesNo(d.Online)}, {"last heartbeat", heartbeatAgo(d)},
		{"labels", labelText(d.Labels)},
	}
	if s := d.Status; s != nil {
		rows = append(rows, [][]string{
			{"reported labels", labelText(s.Labels)}, {"agent", fmt.Sprintf("%s (protocol %d)", s.AgentVersion, s.Protocol)},
			{"agent started", s.StartedAt.UTC().Format(time.RFC3339)}, {"boot", s.BootID}, {"instance", s.Instance},
			{"runtime", string(s.Runtime)}, {"desired revision", fmt.Sprint(s.DesiredRevision)},
		}...)
		for _, cond := range s.Conditions {
			if cond.Status || cond.Type == command.ConditionReady {
				text := cond.Type
				if !cond.Status {
					text = "not " + text
				}
				text += " since " + cond.Since.UTC().Format(time.RFC3339)
				if cond.Message != "" {
					text += ": " + cond.Message
				}
				rows = append(rows, []string{"condition", text})
			}
		}
		for _, name := range slices.Sorted(maps.Keys(s.Deployments)) {
			dep := s.Deployments[name]
			text := fmt.Sprintf("%s: %s (revision %d)", name, dep.Phase, dep.Revision)
			if dep.Error != nil {
				text += ": " + dep.Error.Message
			}
			rows = append(rows, []string{"deployment", text})
			for _, service := range slices.Sorted(maps.Keys(dep.Services)) {
				rows = append(rows, []string{"service", serviceText(name, service, dep.Services[service])})
			}
		}
	}
	if h := d.Heartbeat; h != nil {
		rows = append(rows, []string{"agent memory", fmt.Sprintf("%.1f MiB", float64(h.MemoryRSSBytes)/(1<<20))})
	}
	if d.Fault != "" {
		rows = append(rows, []string{"not readable", d.Fault})
	}
	for _, row := range rows {
		if _, err := fmt.Fprintf(c.app.stdout, "%-17s %s\n", row[0], command.Printable(row[1])); err != nil {
			return err
		}
	}
	return nil
}

// selectDevices lists the ids of devices; none at all is an error.
func (a *app) selectDevices(ctx context.Context, c *client.Client, selector map[string]string) ([]string, error) {
	list, err := c.Devices(ctx, selector)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		if len(selector) > 0 {
			return nil, &command.Error{Outcome: command.OutcomeUnknownDevice, Message: "no device has these labels; see fleet devices"}
		}
		return nil, &command.Error{Outcome: command.OutcomeUnknownDevice, Message: "no device ever reported"}
	}
	ids := make([]string, len(list))
	for i, d := range list {
		ids[i] = d.ID
	}
	return ids, nil
}

func heartbeatAgo(d client.Device) string {
	if d.LastSeen < 0 {
		return "never"
	}
	return age(d.LastSeen) + " ago"
}

func heartbeatAge(d client.Device) string {
	if d.LastSeen < 0 {
		return "-"
	}
	return age(d.LastSeen)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

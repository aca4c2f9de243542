package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/command"
)

func newJobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job list | show JOB | resume JOB",
		Short: "See how a program on many devices ended, or go on with it",
		Long: `fleet exec on several devices is a job, whose id it prints. The devices keep how their part
ended at the broker for 7 days; what the job is (program, devices) is kept in a file of this
user, so that an interrupted job can go on.`,
		Args: noArgs("say list, show JOB or resume JOB"),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "list",
			Short: "List the jobs of this user that were begun here, the latest first",
			Args:  noArgs(""),
			RunE:  func(*cobra.Command, []string) error { return a.listJobs() },
		},
		&cobra.Command{
			Use:   "show JOB",
			Short: "Show how each device's part of a job ended",
			Long: `Reads how each device's part of a job ended, as the devices stored it at the broker, and as
this user saw it where no device could tell (offline, not started). The exit code is that of
the job: 0 where every device ran the program and that exited with 0.`,
			Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return a.showJob(cmd.Context(), args[0]) },
		},
		&cobra.Command{
			Use:   "resume JOB",
			Short: "Go on with a job that was interrupted",
			Long: fmt.Sprintf(`Asks the devices that have no final result yet: those that were not asked, were offline or
busy, or did not answer. No device runs the program twice. What still runs is taken up: its
output goes on. It works for %v from the beginning of the job.`, age(command.JobLifetime)),
			Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return a.resumeJob(cmd.Context(), args[0]) },
		},
	)
	return cmd
}

// listedJob is a job as -o json prints it.
type listedJob struct {
	Job       string    `json:"job"`
	Began     time.Time `json:"began"`
	Server    string    `json:"server"`
	Selection string    `json:"selection"`
	Devices   int       `json:"devices"`
	Open      int       `json:"open"` // devices that have no final result
	Argv      []string  `json:"argv"`
}

func (a *app) listJobs() error {
	store, err := a.jobStore()
	if err != nil {
		return err
	}
	store.prune(time.Now())
	specs, err := store.list()
	if err != nil {
		return err
	}
	var rows [][]string
	for _, spec := range specs {
		ends, err := store.ends(spec.ID)
		if err != nil {
			return err
		}
		r := runningJob{spec: spec, ended: ends}
		open := (&jobRun{job: &r}).openParts()
		began := command.JobTime(spec.ID).UTC()
		if a.json() {
			err := a.writeJSON(listedJob{
				Job: spec.ID, Began: began, Server: spec.Server, Selection: spec.Selection, Devices: len(spec.Devices), Open: open, Argv: spec.Program.Argv,
			})
			if err != nil {
				return err
			}
			continue
		}
		state := "done"
		if open > 0 {
			state = fmt.Sprintf("%d open", open)
		}
		rows = append(rows, []string{
			spec.ID, age(time.Since(began)) + " ago", strconv.Itoa(len(spec.Devices)), state, spec.Selection, shorten(strings.Join(spec.Program.Argv, " "), 40),
		})
	}
	switch {
	case a.json():
		return nil
	case len(rows) == 0:
		a.say("no job was begun here in the last 7 days")
		return nil
	}
	return a.table([]string{"JOB", "BEGAN", "DEVICES", "STATE", "SELECTION", "PROGRAM"}, rows)
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// shownPart is a device's part of a job as -o json prints it.
type shownPart struct {
	Job string `json:"job"`
	jobEnd
	End        command.EndReason     `json:"end,omitempty"`
	Time       *time.Time            `json:"time,omitempty"`        // broker time
	DurationUS *int64                `json:"duration_us,omitempty"` // microseconds
	Bytes      *command.SessionBytes `json:"bytes,omitempty"`
	Stored     bool                  `json:"stored"` // by the device, at the broker
}

// showJob puts together what the broker keeps and what this user saw. A job that
// was begun elsewhere shows what the broker keeps.
func (a *app) showJob(ctx context.Context, id string) error {
	if err := command.CheckJobID(id); err != nil {
		return err
	}
	store, err := a.jobStore()
	if err != nil {
		return err
	}
	spec, specErr := store.load(id)
	if specErr != nil && outcomeOf(specErr) != command.OutcomeRejected {
		return specErr
	}
	seen, err := store.ends(id)
	if err != nil {
		return err
	}
	parts := map[string]shownPart{}
	for _, d := range spec.Devices {
		parts[d] = shownPart{Job: id, jobEnd: jobEnd{DeviceID: d, Outcome: command.OutcomeFailed, NotStarted: true, Message: "nothing is known of it; fleet job resume asks it"}}
	}
	for d, e := range seen {
		parts[d] = shownPart{Job: id, jobEnd: e}
	}
	c, _, done, err := a.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	for r, err := range c.JobResults(ctx, id) {
		var fault *command.Error
		switch {
		case errors.As(err, &fault):
			return err
		case err != nil:
			a.say(oneLine(err.Error()))
			continue
		}
		p := shownPart{Job: id, jobEnd: endOf(r), End: r.End, Time: &r.Time, DurationUS: &r.DurationUS, Bytes: r.Bytes, Stored: true}
		if before, ok := seen[r.DeviceID]; ok && before.final() && !p.final() {
			continue // it was asked again, and refused
		}
		parts[r.DeviceID] = p
	}
	if len(parts) == 0 {
		return rejected("nothing is stored of job %s, and it was not begun here; results are kept for 7 days", id)
	}
	return a.printParts(parts)
}

func (a *app) printParts(parts map[string]shownPart) error {
	t := newTally()
	rows := make([][]string, 0, len(parts))
	for _, d := range slices.Sorted(maps.Keys(parts)) {
		p := parts[d]
		t.add(p.Outcome, p.code(), p.NotStarted)
		if a.json() {
			if err := a.writeJSON(p); err != nil {
				return err
			}
			continue
		}
		row := []string{d, string(p.Outcome), "-", "-", "-"}
		if p.NotStarted {
			row[1] = "not started"
		}
		if p.ExitCode != nil {
			row[2] = strconv.Itoa(*p.ExitCode)
		}
		if p.DurationUS != nil {
			row[3] = rtt(time.Duration(*p.DurationUS) * time.Microsecond)
		}
		switch {
		case p.End != "":
			row[4] = string(p.End)
		case p.Message != "":
			row[4] = p.Message
		case p.Kind != "":
			row[4] = string(p.Kind)
		}
		rows = append(rows, row)
	}
	if !a.json() {
		if err := a.table([]string{"DEVICE", "OUTCOME", "EXIT", "DURATION", "NOTE"}, rows); err != nil {
			return err
		}
		a.say(t.String())
	}
	if code := t.code(); code != 0 {
		return exitError{code: code}
	}
	return nil
}

func (a *app) resumeJob(ctx context.Context, id string) error {
	store, err := a.jobStore()
	if err != nil {
		return err
	}
	job, err := store.open(id)
	if err != nil {
		return err
	}
	defer job.close()
	c, s, done, err := a.client(ctx)
	if err != nil {
		return err
	}
	defer done()
	uid, err := c.UID()
	switch {
	case err != nil:
		return err
	case uid != job.spec.UID:
		return rejected("job %s was begun by somebody else (uid %s, you are %s): devices would run the program once more; sign in as before", id, job.spec.UID, uid)
	}
	if err := job.merge(ctx, c); err != nil {
		return err
	}
	if open := (&jobRun{job: job}).openParts(); open > 0 && time.Since(command.JobTime(id)) > command.JobLifetime {
		return rejected("job %s is older than %v, and devices take no more of it; fleet job show tells how it ended, and fleet exec begins a new one for the %s that are left",
			id, age(command.JobLifetime), countOf(open, "device"))
	}
	return a.runJob(ctx, c, s.server, job)
}

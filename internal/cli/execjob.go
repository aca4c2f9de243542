package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// jobRun runs a job, or what is left of it, and shows what comes of it.
type jobRun struct {
	app    *app
	server string
	job    *runningJob
	screen *screen
	tally  *tally

	stop    chan struct{} // closed: no further device is asked
	stopped sync.Once

	mu      sync.Mutex
	running map[string]*deviceOutput

	unseen []commandLogEntry
	broken error // stdout, or the job's log, cannot be written
}

// deviceOutput takes what a device writes: lines for people, or all of it for one
// object.
type deviceOutput struct {
	out, err *deviceLines
	reply    *command.ExecReply // of -o json
}

// jobLine is a device as -o json prints it.
type jobLine struct {
	Job        string             `json:"job"`
	DeviceID   string             `json:"device_id"`
	Outcome    command.Outcome    `json:"outcome"`
	RequestID  string             `json:"request_id,omitempty"`
	Reply      *command.ExecReply `json:"reply,omitempty"`
	Duration   *int64             `json:"duration_us,omitempty"` // microseconds
	Resumed    bool               `json:"resumed,omitempty"`
	NotStarted bool               `json:"not_started,omitempty"`
	Message    string             `json:"message,omitempty"`
}

// runJob runs a job for all devices that have no final result yet.
func (a *app) runJob(ctx context.Context, c *client.Client, server string, job *runningJob) error {
	r := &jobRun{app: a, server: server, job: job, tally: newTally(), stop: make(chan struct{}), running: map[string]*deviceOutput{}}
	var devices []string
	for _, d := range job.spec.Devices {
		if e, ok := job.ended[d]; ok && e.final() {
			r.tally.add(e.Outcome, e.code(), false)
			continue
		}
		devices = append(devices, d)
	}
	earlier := r.tally.total
	r.screen = a.newScreen(devices, func() string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return progressBar(r.tally.total, len(job.spec.Devices), len(r.running), r.tally.parts())
	})
	defer func() { a.logCommands(r.unseen) }()
	defer r.screen.close()
	if !a.json() {
		begins := fmt.Sprintf("job %s on %s", job.spec.ID, countOf(len(job.spec.Devices), "device"))
		if earlier > 0 {
			begins += fmt.Sprintf(", of which %d are done", earlier)
		}
		r.screen.say(begins)
	}
	o := job.spec.Program.options(client.Job{ID: job.spec.ID, Secret: job.spec.Secret})
	o.Output = r.output
	f := job.spec.fanOut(a.timeout)
	f.Stop = r.stop
	defer context.AfterFunc(ctx, r.interrupted)()
	// The context of the programs does not end with Ctrl-C: they come to their end,
	// or the next Ctrl-C ends this process, and their devices end them.
	for result := range c.ExecAll(context.WithoutCancel(ctx), devices, o, f) {
		r.take(result)
	}
	return r.end(ctx)
}

// end sums up.
func (r *jobRun) end(ctx context.Context) error {
	id := r.job.spec.ID
	code := r.tally.code()
	if r.broken != nil {
		return r.broken
	}
	if r.app.json() {
		if code != 0 {
			return exitError{code: code}
		}
		return nil
	}
	r.screen.say(fmt.Sprintf("job %s: %s", id, r.tally))
	if open := r.openParts(); open > 0 && (ctx.Err() != nil || r.tally.notStarted > 0) {
		r.screen.say(fmt.Sprintf("%s may be asked again: fleet job resume %s", countOf(open, "device"), id))
	}
	if code != 0 {
		return exitError{code: code}
	}
	return nil
}

// openParts is how many devices a resume would ask.
func (r *jobRun) openParts() int {
	open := 0
	for _, d := range r.job.spec.Devices {
		if e, ok := r.job.ended[d]; !ok || !e.final() {
			open++
		}
	}
	return open
}

// interrupted is the first Ctrl-C: nobody else is asked.
func (r *jobRun) interrupted() {
	r.halt()
	r.mu.Lock()
	var names []string
	for d := range r.running {
		names = append(names, d)
	}
	r.mu.Unlock()
	slices.Sort(names)
	what := "nothing runs"
	if len(names) > 0 {
		const most = 10
		what = countOf(len(names), "device") + " still at work: " + strings.Join(names[:min(most, len(names))], ", ")
		if len(names) > most {
			what += ", …"
		}
	}
	r.screen.say(fmt.Sprintf("stopping: no further device is asked; %s. Ctrl-C again leaves at once; fleet job resume %s goes on", what, r.job.spec.ID))
}

func (r *jobRun) halt() { r.stopped.Do(func() { close(r.stop) }) }

// output is where what a device writes goes.
func (r *jobRun) output(device string) (stdout, stderr io.Writer) {
	o := &deviceOutput{}
	if r.app.json() {
		o.reply = &command.ExecReply{Stdout: []byte{}, Stderr: []byte{}}
		stdout, stderr = (*cappedOutput)(o.reply).streams()
	} else {
		o.out = &deviceLines{screen: r.screen, device: device, stream: command.StreamStdout}
		o.err = &deviceLines{screen: r.screen, device: device, stream: command.StreamStderr}
		stdout, stderr = o.out, o.err
	}
	r.mu.Lock()
	r.running[device] = o
	r.mu.Unlock()
	return stdout, stderr
}

// cappedOutput keeps the output of a device up to the size of a reply.
type cappedOutput command.ExecReply

func (c *cappedOutput) streams() (stdout, stderr io.Writer) {
	return writerFunc(func(p []byte) { c.keep(&c.Stdout, p) }), writerFunc(func(p []byte) { c.keep(&c.Stderr, p) })
}

func (c *cappedOutput) keep(to *[]byte, p []byte) {
	n := min(len(p), command.MaxExecOutput-len(c.Stdout)-len(c.Stderr))
	c.Truncated = c.Truncated || n < len(p)
	*to = append(*to, p[:n]...)
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// take shows and keeps the result of a device.
func (r *jobRun) take(result client.ExecAllResult) {
	r.mu.Lock()
	o := r.running[result.Device]
	delete(r.running, result.Device)
	r.tally.add(result.Outcome(), result.ExitCode, result.NotStarted())
	r.mu.Unlock()
	r.screen.changed()
	e := jobEnd{DeviceID: result.Device, RequestID: result.RequestID, Outcome: result.Outcome(), NotStarted: result.NotStarted()}
	if result.Err == nil {
		e.ExitCode = &result.ExitCode
	} else {
		e.Kind, e.Message = result.Err.Kind, messageOf(result.Err)
		if result.RequestID != "" && unseen(result.Err) {
			r.unseen = append(r.unseen, commandLogEntryOf(r.server, command.VerbExec, result.Err))
		}
	}
	if err := r.job.note(e); err != nil {
		r.fail(fmt.Errorf("the job's log cannot be written: %w", err))
	}
	if err := r.show(result, o); err != nil {
		r.fail(err)
	}
}

// fail stops the job where its results cannot be told.
func (r *jobRun) fail(err error) {
	if r.broken == nil {
		r.broken = err
	}
	r.halt()
}

func (r *jobRun) show(result client.ExecAllResult, o *deviceOutput) error {
	if r.app.json() {
		line := jobLine{
			Job: r.job.spec.ID, DeviceID: result.Device, Outcome: result.Outcome(), RequestID: result.RequestID, Resumed: result.Resumed, NotStarted: result.NotStarted(),
		}
		if result.Err != nil {
			line.Message = messageOf(result.Err)
		} else {
			us := result.Duration.Microseconds()
			line.Duration, line.Reply = &us, &command.ExecReply{Stdout: []byte{}, Stderr: []byte{}}
			if o != nil {
				line.Reply = o.reply
			}
			line.Reply.ExitCode = result.ExitCode
		}
		return r.app.writeJSON(line)
	}
	var err error
	if o != nil {
		err = errors.Join(o.out.flush(), o.err.flush())
	}
	switch {
	case result.NotStarted():
	case result.Err != nil:
		r.screen.say(oneLine(result.Err.Error()))
	case result.ExitCode != 0:
		r.screen.say(fmt.Sprintf("exec %s: exit code %d", result.Device, result.ExitCode))
	}
	return err
}

// merge takes over what the broker keeps of a job.
func (r *runningJob) merge(ctx context.Context, c *client.Client) error {
	mine := map[string]bool{}
	for _, d := range r.spec.Devices {
		mine[d] = true
	}
	for stored, err := range c.JobResults(ctx, r.spec.ID) {
		var fault *command.Error
		switch {
		case errors.As(err, &fault):
			return err
		case err != nil || !mine[stored.DeviceID]:
			continue
		}
		if before, ok := r.ended[stored.DeviceID]; ok && before.final() {
			continue
		}
		if e := endOf(stored); e.final() {
			if err := r.note(e); err != nil {
				return fmt.Errorf("the job's log cannot be written: %w", err)
			}
		}
	}
	return nil
}

// endOf is a stored result as the job's own.
func endOf(r command.JobResult) jobEnd {
	e := jobEnd{DeviceID: r.DeviceID, RequestID: r.RequestID, Outcome: r.Outcome, Kind: r.Kind, ExitCode: r.ExitCode}
	if r.Outcome != command.OutcomeOK {
		e.ExitCode = nil
	}
	return e
}

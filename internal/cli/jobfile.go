package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/atomicfile"
)

// A job is two files in the directory jobs: <id>.json says what it is and never
// changes, <id>.log has a line for each device that ended and is locked by the
// one process that runs the job. Both hold what may be secret (arguments,
// environment), and have mode 0600.
const (
	jobSuffix    = ".json"
	jobLogSuffix = ".log"
	// jobsKept is how long the files of a job are kept: as long as the broker keeps
	// its results.
	jobsKept = 7 * 24 * time.Hour
	// maxJobFile bounds what is read, in bytes: a job of 100,000 devices has 7 MB.
	maxJobFile = 64 << 20
)

// jobSpec is what a job is: all that is needed to go on with it.
type jobSpec struct {
	Schema    int        `json:"schema"`
	ID        string     `json:"job"`
	Secret    string     `json:"secret"`
	UID       string     `json:"uid"` // of the caller who began it
	Server    string     `json:"server"`
	Selection string     `json:"selection"` // as it was asked for, for people
	Devices   []string   `json:"devices"`
	Program   jobProgram `json:"program"`

	Concurrency int      `json:"concurrency"`
	Rate        float64  `json:"rate,omitempty"`        // devices a second
	AbortAfter  *float64 `json:"abort_after,omitempty"` // share, 0 to 1
	AbortMin    int      `json:"abort_min,omitempty"`
}

// jobProgram is what runs.
type jobProgram struct {
	Container string            `json:"container,omitempty"`
	Host      bool              `json:"host,omitempty"`
	Argv      []string          `json:"argv"`
	Env       map[string]string `json:"env,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	User      string            `json:"user,omitempty"`
	TimeoutMS int64             `json:"timeout_ms,omitempty"`
	Window    int64             `json:"window"` // bytes
}

func (p jobProgram) options(job client.Job) client.ExecOptions {
	return client.ExecOptions{
		Container: p.Container, Host: p.Host, Argv: p.Argv, Env: p.Env, Workdir: p.Workdir, User: p.User,
		Timeout: time.Duration(p.TimeoutMS) * time.Millisecond, Window: p.Window, Job: job,
	}
}

func (j *jobSpec) fanOut(timeout time.Duration) client.FanOut {
	f := client.FanOut{Window: j.Concurrency, Rate: j.Rate, Timeout: timeout}
	if j.AbortAfter != nil {
		f.Abort = &client.Abort{Share: *j.AbortAfter, Min: j.AbortMin}
	}
	return f
}

// check refuses a file that somebody else's hand, or a newer version, has made.
func (j *jobSpec) check(id string) error {
	switch {
	case j.Schema != command.Schema:
		return fmt.Errorf(`it has "schema":%d, this version reads %d`, j.Schema, command.Schema)
	case j.ID != id:
		return errors.New("it is of another job")
	case command.CheckJobID(j.ID) != nil || command.CheckSessionID(j.Secret) != nil || !command.IsUID(j.UID):
		return errors.New("its id, secret or uid is damaged")
	case len(j.Program.Argv) == 0 || len(j.Devices) == 0:
		return errors.New("it has no program or no devices")
	}
	return nil
}

// jobEnd is how a device's part of a job ended.
type jobEnd struct {
	DeviceID   string          `json:"device_id"`
	RequestID  string          `json:"request_id,omitempty"`
	Outcome    command.Outcome `json:"outcome"`
	Kind       command.Kind    `json:"kind,omitempty"`
	ExitCode   *int            `json:"exit_code,omitempty"`
	NotStarted bool            `json:"not_started,omitempty"`
	Message    string          `json:"message,omitempty"`
}

// final tells whether asking again would give nothing else: the program ran, or
// the device refused it for good.
func (e jobEnd) final() bool {
	if e.ExitCode != nil {
		return true
	}
	switch e.Kind {
	case "", command.KindBusy, command.KindExpired, command.KindDuplicate, command.KindStartedNoResult:
		return false
	}
	return true
}

func (e jobEnd) code() int {
	if e.ExitCode == nil {
		return 0
	}
	return *e.ExitCode
}

// jobStore is the directory of the jobs of this user.
type jobStore struct{ dir string }

func (a *app) jobStore() (jobStore, error) {
	dir, err := a.xdgDir("XDG_STATE_HOME", ".local/state")
	return jobStore{filepath.Join(dir, "jobs")}, err
}

func (s jobStore) path(id, suffix string) string { return filepath.Join(s.dir, id+suffix) }

// runningJob is a job that this process runs.
type runningJob struct {
	spec  jobSpec
	ended map[string]jobEnd // by device
	log   *os.File
}

func (r *runningJob) close() { _ = r.log.Close() } // gives the lock back

// note adds how a device ended. The file is a help and no more: what it lacks
// after a crash is asked of broker and devices.
func (r *runningJob) note(e jobEnd) error {
	r.ended[e.DeviceID] = e
	line, err := json.Marshal(e)
	if err == nil {
		_, err = r.log.Write(append(line, '\n'))
	}
	return err
}

// create keeps a new job, and lets those go that are old.
func (s jobStore) create(spec jobSpec) (*runningJob, error) {
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err == nil {
		s.prune(time.Now())
		err = atomicfile.Write(s.path(spec.ID, jobSuffix), append(data, '\n'))
	}
	if err != nil {
		return nil, fmt.Errorf("the job cannot be kept, and could not be gone on with: %w", err)
	}
	return s.open(spec.ID)
}

// open takes a job up; it fails where another process runs it.
func (s jobStore) open(id string) (*runningJob, error) {
	spec, err := s.load(id)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path(id, jobLogSuffix), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, rejected("job %s is being run by another process; wait for it, or end it", id)
		}
		return nil, fmt.Errorf("job %s: lock: %w", id, err)
	}
	ended, err := readJobLog(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	return &runningJob{spec: spec, ended: ended, log: f}, nil
}

// load reads what a job is.
func (s jobStore) load(id string) (jobSpec, error) {
	if err := command.CheckJobID(id); err != nil {
		return jobSpec{}, err
	}
	data, err := readBounded(s.path(id, jobSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return jobSpec{}, rejected("no job %s was begun here, or it is older than %v; see fleet job list", id, age(jobsKept))
	}
	var spec jobSpec
	if err == nil {
		spec, err = decodeJobSpec(id, data)
	}
	if err != nil {
		return jobSpec{}, fmt.Errorf("job file %s: %w", s.path(id, jobSuffix), err)
	}
	return spec, nil
}

func decodeJobSpec(id string, data []byte) (jobSpec, error) {
	var spec jobSpec
	if err := json.Unmarshal(data, &spec); err != nil {
		return jobSpec{}, err
	}
	return spec, spec.check(id)
}

func readBounded(path string) ([]byte, error) {
	if info, err := os.Stat(path); err != nil || info.Size() > maxJobFile {
		if err == nil {
			err = fmt.Errorf("it has %d bytes, more than the %d allowed", info.Size(), maxJobFile)
		}
		return nil, err
	}
	return os.ReadFile(path)
}

// ends reads how a job's devices have ended, as far as this user saw it.
func (s jobStore) ends(id string) (map[string]jobEnd, error) {
	data, err := readBounded(s.path(id, jobLogSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	return readJobLog(bytes.NewReader(data))
}

// readJobLog reads lines; one that cannot be read, such as the torn last one of a
// process that was killed, counts as not written.
func readJobLog(r interface{ Read([]byte) (int, error) }) (map[string]jobEnd, error) {
	ended := map[string]jobEnd{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		var e jobEnd
		if json.Unmarshal(lines.Bytes(), &e) == nil && isDeviceID(e.DeviceID) && e.Outcome.Known() {
			ended[e.DeviceID] = e
		}
	}
	return ended, lines.Err()
}

// list gives the jobs that are kept, the latest first.
func (s jobStore) list() ([]jobSpec, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	var specs []jobSpec
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), jobSuffix)
		if !ok || command.CheckJobID(id) != nil {
			continue
		}
		if spec, err := s.load(id); err == nil {
			specs = append(specs, spec)
		}
	}
	slices.SortFunc(specs, func(a, b jobSpec) int { return strings.Compare(b.ID, a.ID) })
	return specs, nil
}

// prune removes the files of old jobs. Their age is told by their ids.
func (s jobStore) prune(now time.Time) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		id := strings.TrimSuffix(strings.TrimSuffix(e.Name(), jobSuffix), jobLogSuffix)
		if command.CheckJobID(id) == nil && now.Sub(command.JobTime(id)) > jobsKept {
			_ = os.Remove(filepath.Join(s.dir, e.Name())) // the next one tries again
		}
	}
}

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/broker"
	"github.com/harmony-fleet/fleet/internal/podmantest"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

const (
	device   = "d1"
	password = "hunter2-hunter2"
	probe    = "localhost/probe:1"
	patience = 2 * time.Minute // some of it waits for 50 containers on a slow machine
)

// agentBinary is the program as it is shipped: static and stripped.
var agentBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fleet-agent-test-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	binary := filepath.Join(dir, "fleet-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return binary, nil
})

var binaryDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if binaryDir != "" {
		_ = os.RemoveAll(binaryDir)
	}
	os.Exit(code)
}

// world is a broker, a Podman, and the configuration of an agent of both.
type world struct {
	t      testing.TB
	podman *podmantest.Podman // nil where the world is of another engine
	broker *broker.Server
	kv     jetstream.KeyValue
	status chan command.Status // the latest one
	config string
	state  string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	podman := podmantest.Start(t)
	podman.Image(t, probe)
	w := newWorldOf(t, podman.Socket, "")
	w.podman = podman
	return w
}

// newWorldOf is a world with the engine at socket, and more in the configuration
// of the agent.
func newWorldOf(t testing.TB, socket, more string) *world {
	t.Helper()
	w := &world{t: t, state: filepath.Join(t.TempDir(), "state"), status: make(chan command.Status, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	srv, err := broker.Start(ctx, broker.Config{
		Port: broker.AnyPort, StoreDir: t.TempDir(), SystemPassword: password,
		UserPass: &broker.UserPass{Ops: password, Data: password, Device: password},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	w.broker = srv
	nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo(broker.UserData, password), nats.CustomInboxPrefix(command.InboxPrefix(command.UID(broker.UserData))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if _, err := broker.Provision(ctx, nc, broker.ProvisionOptions{}); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if w.kv, err = js.KeyValue(ctx, command.DesiredStateBucket); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Subscribe(command.StatusSubject(device), func(msg *nats.Msg) {
		if s, err := command.DecodeDocument[command.Status](msg.Data); err == nil {
			select {
			case <-w.status:
			default:
			}
			w.status <- s
		}
	}); err != nil {
		t.Fatal(err)
	}
	w.config = filepath.Join(t.TempDir(), "agent.toml")
	text := fmt.Sprintf("[agent]\ndevice_id = %q\nstate_dir = %q\n[nats]\nurl = %q\n[credentials]\ntype = \"shared\"\nuser = %q\npassword = %q\n[runtime]\nsocket = %q\n%s",
		device, w.state, srv.ClientURL(), broker.UserDevice, password, socket, more)
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// process is an agent that runs.
type process struct {
	*exec.Cmd
	log  bytes.Buffer
	once sync.Once
}

// start runs the agent until the test ends or it is killed.
func (w *world) start() *process {
	w.t.Helper()
	binary, err := agentBinary()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(binary, "--config", w.config)}
	p.Stderr = &p.log
	if err := p.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if w.t.Failed() {
			w.t.Logf("log of the agent:\n%s", p.log.String())
		}
	})
	return p
}

// end sends a signal and waits.
func (p *process) end(s syscall.Signal) {
	p.once.Do(func() {
		_ = p.Process.Signal(s)
		_ = p.Wait() // killed
	})
}

func (w *world) put(services ...command.Service) uint64 {
	w.t.Helper()
	data, err := json.Marshal(command.PodmanV0{Services: services})
	if err != nil {
		w.t.Fatal(err)
	}
	doc, err := json.Marshal(command.DesiredState{Schema: 1, Deployments: map[string]command.Score{"one": {Type: command.ScorePodmanV0, Data: data}}})
	if err != nil {
		w.t.Fatal(err)
	}
	revision, err := w.kv.Put(w.t.Context(), device, doc)
	if err != nil {
		w.t.Fatal(err)
	}
	return revision
}

// await waits for a status in which all of a revision runs.
func (w *world) await(revision uint64) command.Status {
	w.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		select {
		case s := <-w.status:
			if d := s.Deployments["one"]; d.Revision == revision && d.Phase == command.PhaseRunning {
				return s
			}
		case <-deadline.C:
			w.t.Fatalf("revision %d does not run", revision)
		}
	}
}

// containers are the names of all containers on the engine.
func (w *world) containers() []string {
	w.t.Helper()
	out, err := w.podman.Run("ps", "--all", "--format", "{{.Names}}")
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Fields(out)
}

func web(text string) command.Service {
	return command.Service{Name: "web", Image: probe, Command: []string{"serve", text}, Ports: []string{"8080:80"}}
}

// TestAnAgentThatIsKilledAgainAndAgain kills the real program with SIGKILL at
// moments of chance while it works, and wants one container in the end.
func TestAnAgentThatIsKilledAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	for i := range 8 {
		p := w.start()
		w.put(web(fmt.Sprint(i)), command.Service{Name: fmt.Sprintf("side%d", i%2), Image: probe})
		pause := time.NewTimer(time.Duration(rand.IntN(600)) * time.Millisecond)
		<-pause.C
		p.end(syscall.SIGKILL)
	}
	w.start()
	w.await(w.put(web("last")))
	testwait.For(t, patience, "one container", func() bool {
		got := w.containers()
		return len(got) == 1 && strings.HasPrefix(got[0], "fleet_d1_one_web_")
	})
	if got, err := w.podman.Get("http://127.0.0.1:8080/"); err != nil || got != "last" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestADeviceThatStartsWithoutTheBroker runs again what it ran before.
func TestADeviceThatStartsWithoutTheBroker(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	w.await(w.put(web("kept")))
	p.end(syscall.SIGKILL)
	if _, err := w.podman.Run("rm", "--all", "--force", "--time", "0"); err != nil {
		t.Fatal(err)
	}
	w.broker.Close()
	w.start()
	testwait.For(t, patience, "the container answers", func() bool {
		got, err := w.podman.Get("http://127.0.0.1:8080/")
		return err == nil && got == "kept"
	})
}

// resident is the resident memory of a process, in bytes.
func resident(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(data), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// settled is the resident memory of an agent that has nothing to do any more:
// the least that is seen within a few seconds.
func (w *world) settled(p *process) int {
	w.t.Helper()
	least := resident(w.t, p.Process.Pid)
	end := time.NewTimer(5 * time.Second)
	defer end.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			least = min(least, resident(w.t, p.Process.Pid))
		case <-end.C:
			return least
		}
	}
}

// TestTheAgentTakesLittleMemory holds the sizes of docs/performance.md.
func TestTheAgentTakesLittleMemory(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	testwait.For(t, patience, "the engine is found", func() bool {
		select {
		case s := <-w.status:
			return s.Runtime == command.RuntimeReady
		default:
			return false
		}
	})
	idle := w.settled(p)
	var many []command.Service
	for i := range 50 {
		many = append(many, command.Service{Name: fmt.Sprintf("s%d", i), Image: probe})
	}
	w.await(w.put(many...))
	full := w.settled(p)
	binary, err := agentBinary()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var compressed counter
	z, err := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
	if err == nil {
		_, err = io.Copy(z, f)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	t.Logf("resident without containers %.1f MiB, with 50 %.1f MiB; binary %.1f MB compressed",
		float64(idle)/(1<<20), float64(full)/(1<<20), float64(compressed)/1e6)
	if idle >= 12<<20 {
		t.Errorf("%d bytes resident without containers", idle)
	}
	if full >= 16<<20 {
		t.Errorf("%d bytes resident with 50 containers", full)
	}
	if compressed > 5_000_000 {
		t.Errorf("the binary has %d bytes compressed", compressed)
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// BenchmarkPutToRunning is the time from a put of a desired state until the
// status says that its container runs, beside that of `podman run -d` of the
// same image in the same run; the ratio is the one of the medians.
func BenchmarkPutToRunning(b *testing.B) {
	w := newWorld(b)
	w.start()
	w.await(w.put(web("first")))
	var ours, bare []time.Duration
	for i := range b.N {
		w.put(command.Service{Name: "other", Image: probe}) // takes the one before away
		testwait.For(b, patience, "removed", func() bool { return len(w.containers()) == 1 })
		began := time.Now()
		w.await(w.put(command.Service{Name: "other", Image: probe}, command.Service{Name: fmt.Sprintf("w%d", i), Image: probe}))
		ours = append(ours, time.Since(began))
		began = time.Now()
		id, err := w.podman.Run("run", "--detach", probe)
		bare = append(bare, time.Since(began))
		if err == nil {
			_, err = w.podman.Run("rm", "--force", "--time", "0", id)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(median(ours).Seconds()*1e3, "ms/put")
	b.ReportMetric(median(bare).Seconds()*1e3, "ms/podman-run")
	b.ReportMetric(float64(median(ours))/float64(median(bare)), "ratio")
	b.ReportMetric(0, "ns/op")
}

func median(d []time.Duration) time.Duration {
	for i := range d { // few
		for j := i; j > 0 && d[j] < d[j-1]; j-- {
			d[j], d[j-1] = d[j-1], d[j]
		}
	}
	return d[len(d)/2]
}

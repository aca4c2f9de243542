package local

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// supervisorName is the name under which a program becomes the supervisor.
const supervisorName = "harmony-fleet-cluster"

// Descriptors that a supervisor is started with, next to the standard ones.
const (
	orderFD = 3 // read end of a pipe: the order, then linkIsThere
	lockFD  = 4 // the cluster's lock, held as long as the supervisor lives
)

// order is what a supervisor is told.
type order struct {
	Dir        string      `json:"dir"`
	Name       string      `json:"name"`
	Link       string      `json:"link"` // the node's end, to be found in its network namespace
	Addresses  addresses   `json:"addresses"`
	Components []component `json:"components"`
}

// The supervisor has to be a program that certainly exists and fits the one that
// starts it, which only that program itself is. This runs before main, so that a
// test binary can be one too.
func init() {
	if len(os.Args) > 0 && os.Args[0] == supervisorName {
		life := supervise
		if len(os.Args) > 1 && os.Args[1] == launchArgument {
			life = launch
		}
		if err := life(); err != nil {
			fmt.Fprintln(os.Stderr, "supervisor:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// supervise is the life of process 1 of a node. When it returns, the kernel ends
// every process of the node.
func supervise() error {
	syscall.CloseOnExec(lockFD)
	orders := os.NewFile(orderFD, "order")
	syscall.CloseOnExec(orderFD)
	var o order
	decoder := json.NewDecoder(orders)
	if err := decoder.Decode(&o); err != nil {
		return fmt.Errorf("read order: %w", err)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	l := layout{o.Dir}
	if err := writeStatus(l, status{PID: outerPID(), Name: o.Name, Network: o.Addresses.Network, Started: time.Now().UTC()}); err != nil {
		return err
	}
	if err := enterNode(o); err != nil {
		return err
	}
	if err := awaitLink(io.MultiReader(decoder.Buffered(), orders)); err != nil {
		return err
	}
	orders.Close()
	if err := configureNetwork(o.Link, o.Addresses); err != nil {
		return err
	}

	s := &supervisor{layout: l, children: map[int]chan syscall.WaitStatus{}, started: make(chan struct{}, 1), states: map[string]*ComponentStatus{}}
	for _, c := range o.Components { // all of them, before the first reports
		s.states[c.Name] = &ComponentStatus{Name: c.Name}
	}
	go s.reap()
	for _, c := range o.Components {
		s.wg.Go(func() { s.keep(ctx, c) })
	}
	s.wg.Go(func() { s.trimLogs(ctx) })
	s.wg.Go(func() { s.endYielding(ctx, netip.AddrPortFrom(o.Addresses.Node, apiPort)) })
	<-ctx.Done()
	return nil // no farewell: nothing of the cluster is kept
}

// linkIsThere follows the order when the node's link has been made. It is none of
// the characters that may stand after a JSON document.
const linkIsThere = '!'

// awaitLink reads what follows the order until the link is there. The end of the
// pipe before that means that the program that started us has died half way.
func awaitLink(orders io.Reader) error {
	if _, err := bufio.NewReader(orders).ReadBytes(linkIsThere); err != nil {
		return fmt.Errorf("the program that started the cluster ended before the network was there: %w", err)
	}
	return nil
}

// outerPID is this process's id outside its namespace. The mounted /proc is still
// the machine's, and tells ids as the machine sees them.
func outerPID() int {
	target, err := os.Readlink("/proc/self")
	if err != nil {
		return 0
	}
	pid := 0
	_, _ = fmt.Sscan(target, &pid) // 0 if it is no number, which no process has
	return pid
}

// supervisor starts the components again when they end, and collects every process
// of the node that ends, shims and their orphans included.
//
// Package os/exec is not used: it waits for its own children only, and a process 1
// that waits for all children would take their status away from it.
type supervisor struct {
	layout  layout
	wg      sync.WaitGroup
	started chan struct{} // wakes reap when there was no child to wait for

	mu       sync.Mutex // guards what follows
	serving  bool       // the API server has served: nobody yields any more
	yielding []int      // processes that do
	children map[int]chan syscall.WaitStatus
	states   map[string]*ComponentStatus
}

// reap waits for children until the process ends.
func (s *supervisor) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			<-s.started
		case err != nil: // EINTR
		default:
			s.mu.Lock()
			if exited, ok := s.children[pid]; ok {
				exited <- ws
				delete(s.children, pid)
			}
			s.mu.Unlock()
		}
	}
}

// start runs c with its output going to its log file.
func (s *supervisor) start(c component) (int, <-chan syscall.WaitStatus, error) {
	log, err := os.OpenFile(s.layout.log(c.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return 0, nil, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()

	exited := make(chan syscall.WaitStatus, 1)
	s.mu.Lock() // so that reap knows the child before it can see it end
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(c.Path, append([]string{filepath.Base(c.Path)}, c.Args...), &syscall.ProcAttr{
		Dir:   s.layout.dir,
		Env:   c.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	s.children[pid] = exited
	if c.Yields && !s.serving && syscall.Setpriority(syscall.PRIO_PROCESS, pid, min(ownPriority()+yielding, lowest)) == nil {
		s.yielding = append(s.yielding, pid)
	}
	select {
	case s.started <- struct{}{}:
	default:
	}
	return pid, exited, nil
}

// Nice values: how much lower a component that yields is than the others, and the
// lowest there is.
const (
	yielding = 10
	lowest   = 19
)

// ownPriority is the nice value of this process.
func ownPriority() int {
	value, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	return 20 - value // Linux returns it so that it is never negative
}

// endYielding gives all components the same priority when the API server serves.
func (s *supervisor) endYielding(ctx context.Context, api netip.AddrPort) {
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // whether somebody serves, not who
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := dialer.DialContext(attempt, "tcp", api.String())
		cancel()
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = true
	for _, pid := range s.yielding {
		// Priorities are those of threads.
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is well formed
		for _, thread := range threads {
			tid, err := strconv.Atoi(filepath.Base(thread))
			if err == nil {
				_ = syscall.Setpriority(syscall.PRIO_PROCESS, tid, ownPriority()) // it may have ended
			}
		}
	}
	s.yielding = nil
}

// Pauses before a component is started again: the first at once, since what it
// needs may just have come up, then longer and longer.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
	// steady is how long a component must have run for its next end to be a first.
	steady = 30 * time.Second
)

// keep runs c until ctx is done.
func (s *supervisor) keep(ctx context.Context, c component) {
	pause := firstPause
	for ctx.Err() == nil {
		begin := time.Now()
		pid, exited, err := s.start(c)
		if err != nil {
			s.note(c.Name, func(st *ComponentStatus) { st.PID, st.LastExit = 0, err.Error() })
		} else {
			s.note(c.Name, func(st *ComponentStatus) { st.PID = pid })
			ws := <-exited
			s.note(c.Name, func(st *ComponentStatus) { st.PID, st.Restarts, st.LastExit = 0, st.Restarts+1, describeExit(ws) })
		}
		if time.Since(begin) > steady {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

func describeExit(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return "ended by signal " + ws.Signal().String()
	}
	return fmt.Sprintf("exit code %d", ws.ExitStatus())
}

// note changes a component's state and writes all of them down.
func (s *supervisor) note(name string, change func(*ComponentStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.states[name])
	list := make([]ComponentStatus, 0, len(s.states))
	for _, st := range s.states {
		list = append(list, *st)
	}
	if err := writeComponents(s.layout, list); err != nil {
		fmt.Fprintln(os.Stderr, "supervisor:", err)
	}
}

// Logs of components are cut when they are longer than maxLog; one older part is
// kept.
const (
	maxLog        = 32 << 20
	trimLogsEvery = 30 * time.Second
)

// trimLogs bounds the components' logs until ctx is done.
func (s *supervisor) trimLogs(ctx context.Context) {
	tick := time.NewTicker(trimLogsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		paths, _ := filepath.Glob(s.layout.log("*")) // the pattern is well formed
		for _, path := range paths {
			if err := trimLog(path, maxLog); err != nil {
				fmt.Fprintln(os.Stderr, "supervisor:", err)
			}
		}
	}
}

// trimLog moves what is in the file to path.1 when it is longer than limit. The
// writer keeps its descriptor, which appends, so the content is copied.
func trimLog(path string, limit int64) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() <= limit {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".1", content, 0o640); err != nil {
		return err
	}
	return os.Truncate(path, 0)
}

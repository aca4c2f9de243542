package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	// diagnosticsTimeout bounds how long looking takes: it is done of clusters that
	// may be broken.
	diagnosticsTimeout = 15 * time.Second
	// maxLog and maxLogLines bound what is kept of each log: so many lines from its
	// end, and of these so many bytes.
	maxLog      = 4 << 20
	maxLogLines = 20000
)

// SaveDiagnostics saves what there is to know of the stack in a folder, and returns
// its path: the logs of every container, those of the run before too, events, each
// Pod as the cluster describes it, and the state of NATS. It saves no Secret. Where
// there is nothing to look at yet the path is empty.
func (s *Stack) SaveDiagnostics() (string, error) {
	if !s.asked() {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), diagnosticsTimeout)
	defer cancel()
	dir, err := diagnosticsDir(s.Namespace)
	if err != nil {
		return "", fmt.Errorf("save diagnostics: %w: set %s to a directory that can be written", err, EnvDiagnostics)
	}
	save := func(name string, content []byte, err error) error {
		if err != nil {
			content = append(content, "\nnot complete: "+err.Error()+"\n"...)
		}
		return os.WriteFile(filepath.Join(dir, name), content, 0o600)
	}
	calls := []func() error{
		func() error { events, err := s.events(ctx); return save("events.txt", events, err) },
		func() error { state, err := s.brokerState(ctx); return save("nats.json", state, err) },
	}
	pods, err := s.kube.CoreV1().Pods(s.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return dir, save("pods.txt", nil, s.kube.explain(err))
	}
	var table bytes.Buffer
	for i := range pods.Items {
		pod := &pods.Items[i]
		calls = append(calls, func() error {
			pod.ManagedFields = nil
			text, err := yaml.Marshal(pod)
			return save(pod.Name+".yaml", text, err)
		})
		for _, c := range pod.Spec.Containers {
			name, ends := containerName(pod, c.Name), status(pod, c.Name).RestartCount
			fmt.Fprintf(&table, "%-50s %-10s restarts %d  %s\n", name, pod.Status.Phase, ends, state(pod, c.Name))
			saveLog := func(file string, previous bool) func() error {
				return func() error {
					text, err := s.podLog(ctx, pod.Name, c.Name, previous, maxLogLines)
					return save(file, text, err)
				}
			}
			calls = append(calls, saveLog(name+".log", false))
			if ends > 0 {
				calls = append(calls, saveLog(name+".previous.log", true))
			}
		}
	}
	for _, a := range s.hostAgents() {
		calls = append(calls, func() error {
			text, err := os.ReadFile(a.log)
			return save("host-"+a.device+".log", text, err)
		})
	}
	return dir, errors.Join(save("pods.txt", table.Bytes(), nil), together(calls...))
}

// diagnosticsDir makes the folder of a namespace. The default is below a directory
// where everybody may write: there somebody else's folder, in which links could
// lead anywhere, is refused.
func diagnosticsDir(namespace string) (string, error) {
	base := os.Getenv(EnvDiagnostics)
	if base == "" {
		base = filepath.Join(os.TempDir(), "harmony-fleet-e2e")
		if err := os.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		info, err := os.Lstat(base)
		if err != nil {
			return "", err
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.IsDir() || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
			return "", fmt.Errorf("%s is not a directory of this user that nobody else can write to", base)
		}
	}
	dir := filepath.Join(base, namespace)
	return dir, os.MkdirAll(dir, 0o700)
}

// podLog gives the last lines of a container's log.
func (s *Stack) podLog(ctx context.Context, pod, container string, previous bool, lines int64) ([]byte, error) {
	limit := int64(maxLog)
	o := &corev1.PodLogOptions{Container: container, Previous: previous, LimitBytes: &limit, TailLines: &lines}
	return s.kube.CoreV1().Pods(s.Namespace).GetLogs(pod, o).DoRaw(ctx)
}

func (s *Stack) events(ctx context.Context) ([]byte, error) {
	list, err := s.kube.CoreV1().Events(s.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	when := func(e corev1.Event) time.Time {
		if !e.LastTimestamp.IsZero() {
			return e.LastTimestamp.Time
		}
		return e.EventTime.Time
	}
	slices.SortStableFunc(list.Items, func(a, b corev1.Event) int { return when(a).Compare(when(b)) })
	var out bytes.Buffer
	for _, e := range list.Items {
		fmt.Fprintf(&out, "%s %-7s %s/%s %s: %s\n", when(e).UTC().Format(time.RFC3339), e.Type, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, oneLine(e.Message))
	}
	return out.Bytes(), nil
}

// brokerState asks NATS, by its system account, what it serves.
func (s *Stack) brokerState(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	nc := s.system
	s.mu.Unlock()
	if nc == nil {
		return nil, errors.New("NATS was not reached")
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var mu sync.Mutex
	out := map[string]json.RawMessage{}
	ask := func(what string, options string) func() error {
		return func() error {
			msg, err := nc.RequestWithContext(ctx, "$SYS.REQ.SERVER.PING."+what, []byte(options))
			if err != nil {
				return fmt.Errorf("%s: %w", strings.ToLower(what), err)
			}
			mu.Lock()
			defer mu.Unlock()
			out[strings.ToLower(what)] = msg.Data
			return nil
		}
	}
	err := together(
		ask("VARZ", ""), ask("CONNZ", `{"auth":true,"subscriptions":true}`), ask("JSZ", `{"accounts":true,"streams":true,"config":true}`),
	)
	text, encodeErr := json.MarshalIndent(out, "", "  ")
	return text, errors.Join(err, encodeErr)
}

// explain adds to the cause of a failed bring-up what the Pods say of it: their state,
// and the last lines of those that do not run or whose part is missed.
func (s *Stack) explain(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	pods, _ := s.watch.look()
	var text strings.Builder
	shown := 0
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		pod := pods[name]
		for _, c := range pod.Spec.Containers {
			said := state(pod, c.Name)
			if said == "running" && status(pod, c.Name).RestartCount == 0 && strings.HasPrefix(c.Name, podName("")) && shown > 2 {
				continue // of many devices some are enough
			}
			shown++
			fmt.Fprintf(&text, "\n  Pod %s: %s", containerName(pod, c.Name), said)
			lines, err := s.podLog(ctx, name, c.Name, false, 2)
			if err != nil || len(bytes.TrimSpace(lines)) == 0 {
				continue
			}
			for line := range strings.Lines(strings.TrimSpace(string(lines))) {
				fmt.Fprintf(&text, "\n    %s", strings.TrimSpace(line))
			}
		}
	}
	return fmt.Errorf("%w%s", cause, text.String())
}

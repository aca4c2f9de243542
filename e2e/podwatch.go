package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// podWatch knows the Pods of a namespace as the cluster reports them.
type podWatch struct {
	kube      kubernetes.Interface
	namespace string
	deleted   func(name string) // called for each Pod that went away

	mu      sync.Mutex
	pods    map[string]*corev1.Pod
	changed chan struct{} // closed at the next change
}

func newPodWatch(kube kubernetes.Interface, namespace string, deleted func(string)) *podWatch {
	return &podWatch{kube: kube, namespace: namespace, deleted: deleted, pods: map[string]*corev1.Pod{}, changed: make(chan struct{})}
}

// run follows the Pods until ctx ends. A watch that breaks is begun anew with a list.
func (w *podWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.follow(ctx); err != nil && !pause(ctx, retryPause) {
			return
		}
	}
}

func (w *podWatch) follow(ctx context.Context) error {
	list, err := w.kube.CoreV1().Pods(w.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	now := map[string]*corev1.Pod{}
	for i := range list.Items {
		now[list.Items[i].Name] = &list.Items[i]
	}
	for _, name := range w.replace(now) {
		w.deleted(name)
	}
	watcher, err := w.kube.CoreV1().Pods(w.namespace).Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok { // an error, such as a version that is too old
			return fmt.Errorf("watch Pods: %v", event.Object)
		}
		w.mu.Lock()
		if event.Type == watch.Deleted {
			delete(w.pods, pod.Name)
		} else {
			w.pods[pod.Name] = pod
		}
		w.tellLocked()
		w.mu.Unlock()
		if event.Type == watch.Deleted {
			w.deleted(pod.Name)
		}
	}
	return nil
}

// replace takes a new list and returns which Pods are gone.
func (w *podWatch) replace(now map[string]*corev1.Pod) (gone []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range w.pods {
		if now[name] == nil {
			gone = append(gone, name)
		}
	}
	w.pods = now
	w.tellLocked()
	return gone
}

func (w *podWatch) tellLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// look gives the Pods by name, and a channel that is closed when that is old.
func (w *podWatch) look() (map[string]*corev1.Pod, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.pods), w.changed
}

// await waits until cond holds, which is asked whenever a Pod has changed.
func (w *podWatch) await(ctx context.Context, cond func(pods map[string]*corev1.Pod) (bool, error)) error {
	for {
		pods, changed := w.look()
		if ok, err := cond(pods); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// hopeless waits until a Pod is in a state that no waiting mends, and says which.
func (w *podWatch) hopeless(ctx context.Context) error {
	return w.await(ctx, func(pods map[string]*corev1.Pod) (bool, error) {
		for _, name := range slices.Sorted(maps.Keys(pods)) {
			if why := stuck(pods[name]); why != "" {
				return false, fmt.Errorf("Pod %s does not start: %s", name, why)
			}
		}
		return false, nil
	})
}

// maxEnds is how often a program may end before its Pod is given up. All of them try
// for ever at what others may not be ready for.
const maxEnds = 2

// stuck says why a Pod will not run without a change; empty where it may.
func stuck(pod *corev1.Pod) string {
	for _, c := range pod.Status.ContainerStatuses {
		wait := c.State.Waiting
		if wait == nil {
			continue
		}
		switch wait.Reason {
		case "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return wait.Reason + ": " + oneLine(wait.Message)
		}
		if ends := c.RestartCount + 1; wait.Reason == "CrashLoopBackOff" && ends >= maxEnds {
			end := ""
			if t := c.LastTerminationState.Terminated; t != nil {
				end = fmt.Sprintf(", the last time with exit code %d (%s)", t.ExitCode, t.Reason)
			}
			return fmt.Sprintf("%s: its program has ended %d times%s", wait.Reason, ends, end)
		}
	}
	return ""
}

// state says in a few words how a container of a Pod does.
func state(pod *corev1.Pod, container string) string {
	c := status(pod, container).State
	switch {
	case c.Waiting != nil:
		return strings.TrimSpace(c.Waiting.Reason + " " + oneLine(c.Waiting.Message))
	case c.Terminated != nil:
		return fmt.Sprintf("ended with exit code %d (%s)", c.Terminated.ExitCode, c.Terminated.Reason)
	case c.Running != nil:
		return "running"
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			return "not scheduled: " + oneLine(c.Message)
		}
	}
	return strings.ToLower(string(pod.Status.Phase))
}

// status is what the cluster says of a container; zero where it has said nothing yet.
func status(pod *corev1.Pod, container string) corev1.ContainerStatus {
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name == container {
			return c
		}
	}
	return corev1.ContainerStatus{}
}

// containerName names a container in messages and files: by its Pod where it has the
// same name, as the only one of a Pod has.
func containerName(pod *corev1.Pod, container string) string {
	if container == pod.Name {
		return pod.Name
	}
	return pod.Name + "." + container
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

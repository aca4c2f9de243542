package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestContainersOfAPodSeeTheirOwnFilesOnly(t *testing.T) {
	parts := []part{
		{name: "fleet-agent-a", secret: "fleet-agents", items: map[string]string{"key.json": "a.key.json"}},
		{name: "fleet-agent-b", secret: "fleet-agents", items: map[string]string{"key.json": "b.key.json"}},
		{name: "alone"},
	}
	pod := newPod("fleet-agent-a", parts, corev1.PullNever, nil)
	volumes := map[string]corev1.Volume{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = v
	}
	mounted := map[string]bool{}
	for i, c := range pod.Spec.Containers {
		if c.Name != parts[i].name || len(c.VolumeMounts) != 2 {
			t.Fatalf("container %d is %s with %d volumes", i, c.Name, len(c.VolumeMounts))
		}
		for _, m := range c.VolumeMounts {
			if mounted[m.Name] {
				t.Errorf("%s shares the volume %s", c.Name, m.Name)
			}
			mounted[m.Name] = true
			if m.MountPath != filesDir {
				continue
			}
			got := map[string]string{}
			for _, item := range volumes[m.Name].Secret.Items {
				got[item.Path] = item.Key
			}
			if len(got) != len(parts[i].items) || got["key.json"] != parts[i].items["key.json"] {
				t.Errorf("%s sees %v", c.Name, got)
			}
		}
	}
	if len(mounted) != len(pod.Spec.Volumes) {
		t.Errorf("%d volumes, of which %d are mounted", len(pod.Spec.Volumes), len(mounted))
	}
}

func TestHowManyAgentsShareAPod(t *testing.T) {
	for _, test := range []struct{ given, devices, want int }{
		{0, 1, 1}, {0, maxAlone, 1}, {0, maxAlone + 1, sharedBy}, {0, MaxDevices, sharedBy}, {1, 20, 1}, {3, 2, 3},
	} {
		if got := (Pod{PerPod: test.given}).perPod(test.devices); got != test.want {
			t.Errorf("PerPod %d of %d devices: %d, want %d", test.given, test.devices, got, test.want)
		}
	}
}

// Agents that share a Pod are devices of their own all the same: each has its state
// and its identity, and its log is found. They go and come back with their Pod.
func TestManyDevicesSharePods(t *testing.T) {
	t.Setenv(EnvDiagnostics, t.TempDir())
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode, NumDevices: maxAlone + 1})
		before := instances(t, s)
		list, err := s.kube.CoreV1().Pods(s.Namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		shared := map[string]int{}
		for _, pod := range list.Items {
			if strings.HasPrefix(pod.Name, podName("")) {
				shared[pod.Name] = len(pod.Spec.Containers)
			}
		}
		if len(shared) != 2 || shared[podName(s.DeviceIDs[0])] != sharedBy || shared[podName(s.DeviceIDs[sharedBy])] != maxAlone+1-sharedBy {
			t.Errorf("containers by Pod: %v", shared)
		}
		pod, container := s.AgentPod(s.DeviceIDs[1])
		if pod != podName(s.DeviceIDs[0]) || container != podName(s.DeviceIDs[1]) {
			t.Errorf("%s runs in Pod %q, container %q", s.DeviceIDs[1], pod, container)
		}
		var info bytes.Buffer
		if s.PrintDebugInfo(&info); !strings.Contains(info.String(), "logs "+pod+" -c "+container+" -f") {
			t.Errorf("no way to that log in:\n%s", info.String())
		}
		testwait.For(t, patience, "the log of a container in the diagnostics", func() bool {
			dir, err := s.SaveDiagnostics()
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join(dir, pod+"."+container+".log"))
			return err == nil && strings.Contains(string(text), "taking commands") && strings.Contains(string(text), s.DeviceIDs[1])
		})

		now := int64(0)
		if err := s.kube.CoreV1().Pods(s.Namespace).Delete(t.Context(), pod, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		for _, id := range s.DeviceIDs[:sharedBy] {
			testwait.For(t, patience, "another agent for "+id, func() bool {
				reply, err := s.Client().Ping(t.Context(), id)
				return err == nil && reply.Instance != before[id]
			})
		}
		after := instances(t, s)
		for _, id := range s.DeviceIDs[sharedBy:] {
			if after[id] != before[id] {
				t.Errorf("the agent of %s, which is in another Pod, was started again", id)
			}
		}
	})
}

// instances asks each device which agent it runs; no two may be the same.
func instances(t *testing.T, s *Stack) map[string]string {
	t.Helper()
	by := map[string]string{}
	for _, id := range s.DeviceIDs {
		reply, err := s.Client().Ping(t.Context(), id)
		if err != nil || reply.DeviceID != id {
			t.Fatalf("ping %s: %+v, %v", id, reply, err)
		}
		by[id] = reply.Instance
	}
	seen := map[string]bool{}
	for _, instance := range by {
		seen[instance] = true
	}
	if len(seen) != len(s.DeviceIDs) {
		t.Fatalf("%d instances answer for %d devices", len(seen), len(s.DeviceIDs))
	}
	return by
}

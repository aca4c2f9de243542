package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	namespacePrefix = "e2e-"

	// labelStack marks namespaces of this package; nothing else is ever swept.
	labelStack = "fleet.harmony.dev/e2e"
	// annotationExpires is when a namespace may be swept, in RFC 3339.
	annotationExpires = "fleet.harmony.dev/expires"
	// annotationOwner names the process that made a namespace; see owner.
	annotationOwner = "fleet.harmony.dev/owner"

	// lease is how long a namespace outlives its last renewal; it is renewed when a
	// third of that has passed.
	lease = 10 * time.Minute
)

func newNamespaceName() string {
	var b [4]byte
	rand.Read(b[:]) // does not fail
	return namespacePrefix + hex.EncodeToString(b[:])
}

// createNamespace makes the namespace, with the level of Pod Security that every
// part of the fleet has to live with.
func createNamespace(ctx context.Context, kube kubernetes.Interface, name string, keep bool, life time.Duration) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name,
		Labels: map[string]string{
			labelStack:                           "true",
			"pod-security.kubernetes.io/enforce": "restricted",
		},
	}}
	if !keep {
		ns.Annotations = map[string]string{annotationOwner: owner(), annotationExpires: expiry(life)}
	}
	_, err := kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("create namespace %s: this user of the cluster may not: ask for the right to create and delete namespaces and what is in them, or name another kubeconfig: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

func expiry(life time.Duration) string { return time.Now().Add(life).UTC().Format(time.RFC3339Nano) }

// renew moves the expiry of the namespace ahead until ctx ends.
func renew(ctx context.Context, kube kubernetes.Interface, name string, life time.Duration, log *slog.Logger) {
	tick := time.NewTicker(life / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{annotationExpires: expiry(life)}}})
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, life/3)
			_, err = kube.CoreV1().Namespaces().Patch(attempt, name, types.MergePatchType, patch, metav1.PatchOptions{})
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("the expiry of the namespace was not renewed; it may be swept", "namespace", name, "error", err)
		}
	}
}

// deleteNamespace ends the Pods at once and has the rest removed by the cluster,
// whose namespace controller takes some seconds.
func deleteNamespace(ctx context.Context, kube kubernetes.Interface, name string, pre *metav1.Preconditions) error {
	err := kube.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{Preconditions: pre})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil && !apierrors.IsConflict(err) { // conflict: it is being deleted, or was renewed
		return fmt.Errorf("delete namespace %s: %w: delete it with: kubectl delete namespace %s", name, err, name)
	}
	if err != nil && pre != nil {
		return nil
	}
	now := int64(0)
	err = kube.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the Pods of namespace %s: %w", name, err)
	}
	return releaseDeployments(ctx, kube, name)
}

// sweep deletes the namespaces of runs that were killed, never one of a run that
// lives. It does what it can: a cluster that does not let it look has nothing of
// ours that another user could not delete.
func sweep(ctx context.Context, kube kubernetes.Interface, log *slog.Logger) {
	list, err := kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: labelStack + "=true"})
	if err != nil {
		log.Warn("namespaces of killed runs were not looked for", "error", err)
		return
	}
	var wg sync.WaitGroup
	for _, ns := range list.Items {
		if !orphaned(ns.Annotations, time.Now(), processGone) {
			continue
		}
		if ns.DeletionTimestamp != nil {
			// Its process may have been killed between the one and the other.
			wg.Go(func() {
				if err := releaseDeployments(ctx, kube, ns.Name); err != nil {
					log.Warn("Deployments of a killed run were not released", "error", err)
				}
			})
			continue
		}
		wg.Go(func() {
			// What was renewed meanwhile has another version, and stays.
			pre := &metav1.Preconditions{UID: &ns.UID, ResourceVersion: &ns.ResourceVersion}
			if err := deleteNamespace(ctx, kube, ns.Name, pre); err != nil {
				log.Warn("a namespace of a killed run was not swept", "error", err)
				return
			}
			log.Info("swept the namespace of a killed run", "namespace", ns.Name)
		})
	}
	wg.Wait()
}

// orphaned tells whether a namespace with these annotations belongs to nobody any
// more: its expiry has passed, or its process is known to be gone. One without an
// expiry is kept for somebody.
func orphaned(annotations map[string]string, now time.Time, gone func(owner string) bool) bool {
	expires, ok := annotations[annotationExpires]
	if !ok {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, expires)
	if err != nil {
		return false // not written by this package
	}
	return now.After(t) || gone(annotations[annotationOwner])
}

// owner names this process: the boot of the machine, the namespace in which process
// ids count, id and start time. Empty where the system does not tell.
func owner() string {
	world := pidWorld()
	start, err := startTime(os.Getpid())
	if world == "" || err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%d/%s", world, os.Getpid(), start)
}

// processGone tells whether the owner is a process of this machine that has ended.
// Of other machines, and of other containers on this one, it knows nothing.
func processGone(owner string) bool {
	rest, ok := strings.CutPrefix(owner, pidWorld()+"/")
	if !ok || pidWorld() == "" {
		return false
	}
	pidText, start, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(pidText)
	if err != nil || pid <= 0 {
		return false
	}
	now, err := startTime(pid)
	return errors.Is(err, os.ErrNotExist) || err == nil && now != start
}

func pidWorld() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	ns, err := os.Readlink("/proc/self/ns/pid") // pid:[4026531836]
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + "/" + strings.Trim(strings.TrimPrefix(ns, "pid:"), "[]")
}

// startTime is when a process was started, in ticks since boot: field 22 of
// /proc/<pid>/stat, the 20th after the name, which is in parentheses.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(stat)[strings.LastIndexByte(string(stat), ')')+1:])
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" { // it has ended, and its parent has not looked yet
		return "", os.ErrNotExist
	}
	return fields[19], nil
}

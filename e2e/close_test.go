package e2e

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/internal/testwait"
)

func TestCloseIsQuickAndMayBeCalledTwiceAtOnce(t *testing.T) {
	kube, _ := kubeOf(t)
	s, err := BringUp(t.Context(), Options{NumDevices: 3})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took > closeLimit {
		t.Errorf("Close took %v", took)
	}
	wantGone(t, kube, s.Namespace, podsGone)
	if _, err := os.Stat(s.CAFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files are left: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func TestKeptStackOutlivesCloseAndSweeps(t *testing.T) {
	t.Setenv(EnvKeep, "1")
	kube, _ := kubeOf(t)
	s, err := BringUp(t.Context(), Options{AuthMode: UserPass})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := errors.Join(deleteNamespace(ctx, kube, s.Namespace, nil), os.RemoveAll(s.dir)); err != nil {
			t.Error(err)
		}
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	sweep(t.Context(), kube, slog.Default())
	if ending(t, kube, s.Namespace) || len(podsOf(t, kube, s.Namespace)) != 2 {
		t.Errorf("the kept namespace is ending: %v, its Pods: %v", ending(t, kube, s.Namespace), podsOf(t, kube, s.Namespace))
	}
	if _, err := os.Stat(s.CAFile); err != nil {
		t.Errorf("the CA file, which people need: %v", err)
	}
}

func TestExpiryIsRenewedWhileTheStackLives(t *testing.T) {
	kube, _ := kubeOf(t)
	s := New(t, Options{AuthMode: UserPass, hooks: hooks{lease: 3 * time.Second}})
	expires := func() string {
		ns, err := kube.CoreV1().Namespaces().Get(t.Context(), s.Namespace, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return ns.Annotations[annotationExpires]
	}
	first := expires()
	testwait.For(t, patience, "a renewal", func() bool { return expires() != first })
	testwait.For(t, patience, "the end of the first lease", func() bool {
		end, err := time.Parse(time.RFC3339Nano, first)
		return err == nil && time.Now().After(end)
	})
	sweep(t.Context(), kube, slog.Default())
	if ending(t, kube, s.Namespace) {
		t.Error("a stack that lives was swept")
	}
	pingAll(t, s)
}

func TestNamespaceOfAnotherMachineIsSweptAfterItsExpiry(t *testing.T) {
	kube, _ := kubeOf(t)
	for name, test := range map[string]struct {
		life time.Duration
		want bool
	}{
		"expired": {-time.Second, true},
		"not yet": {time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNamespaceName()
			if err := createNamespace(t.Context(), kube, ns, false, test.life); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := deleteNamespace(context.WithoutCancel(t.Context()), kube, ns, nil); err != nil {
					t.Error(err)
				}
			})
			sweep(t.Context(), kube, slog.Default())
			if got := ending(t, kube, ns); got != test.want {
				t.Errorf("swept: %v, want %v", got, test.want)
			}
		})
	}
}

func TestOrphans(t *testing.T) {
	now := time.Now()
	gone := func(owner string) bool { return owner == "gone" }
	for name, test := range map[string]struct {
		annotations map[string]string
		want        bool
	}{
		"kept":                      {nil, false},
		"kept, owner gone":          {map[string]string{annotationOwner: "gone"}, false},
		"lives":                     {map[string]string{annotationExpires: now.Add(time.Minute).Format(time.RFC3339Nano), annotationOwner: "here"}, false},
		"owner gone":                {map[string]string{annotationExpires: now.Add(time.Minute).Format(time.RFC3339Nano), annotationOwner: "gone"}, true},
		"expired":                   {map[string]string{annotationExpires: now.Add(-time.Minute).Format(time.RFC3339Nano), annotationOwner: "here"}, true},
		"expired, no owner":         {map[string]string{annotationExpires: now.Add(-time.Minute).Format(time.RFC3339Nano)}, true},
		"an expiry that is no time": {map[string]string{annotationExpires: "tomorrow", annotationOwner: "gone"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := orphaned(test.annotations, now, gone); got != test.want {
				t.Errorf("orphaned: %v, want %v", got, test.want)
			}
		})
	}
}

func TestOwnersThatAreGone(t *testing.T) {
	if owner() == "" {
		t.Skip("this system does not tell when a process was started")
	}
	for name, test := range map[string]struct {
		owner string
		want  bool
	}{
		"this process":           {owner(), false},
		"nobody":                 {"", false},
		"another machine":        {"4a7b/4026531836/1/1", false},
		"an id taken by another": {pidWorld() + "/" + "1/999999999999", true},
		"an id of nobody":        {pidWorld() + "/4194305/1", true}, // above the largest
		"text":                   {pidWorld() + "/me/1", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := processGone(test.owner); got != test.want {
				t.Errorf("gone: %v, want %v", got, test.want)
			}
		})
	}
}

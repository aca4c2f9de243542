package kubetest

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
)

func TestMain(m *testing.M) { Main(m) }

func TestAServerHasTheFleetsResourcesAndKeepsThemAcrossARestart(t *testing.T) {
	s := Start(t)
	c := s.Client(t)
	device := &v1alpha1.Device{}
	device.Name = "d1"
	if err := c.Create(t.Context(), device); err == nil {
		t.Fatal("there are definitions already")
	}
	if err := s.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), device); err != nil {
		t.Fatal(err)
	}
	s.StopAPI()
	if err := c.Get(t.Context(), client.ObjectKey{Name: "d1"}, device); err == nil {
		t.Fatal("it answers when it is stopped")
	}
	s.StartAPI(t)
	if err := c.Get(t.Context(), client.ObjectKey{Name: "d1"}, device); err != nil {
		t.Error(err)
	}
}

func TestAnotherUserMayDoNothing(t *testing.T) {
	s := Shared(t)
	ns := s.Namespace(t)
	err := s.ClientAs(t, "somebody").List(t.Context(), &corev1.PodList{}, client.InNamespace(ns))
	if !apierrors.IsForbidden(err) {
		t.Errorf("got %v", err)
	}
}

// Package v1alpha1 holds the Kubernetes resources of a fleet: what is declared of
// devices and of what runs on them, and the truth that the operator reports back.
//
//	Device      cluster-scoped; made by the operator when a device first reports
//	Deployment  namespaced; what runs on the devices that it selects, and how a
//	            change of it is rolled out
//
// The fields are explained in docs/kubernetes.md. In this package an empty or nil
// field means the default that its comment names.
//
// +kubebuilder:object:generate=true
// +groupName=fleet.harmony.dev
package v1alpha1

//go:generate go tool -modfile=../../tools/go.mod controller-gen object paths=.
//go:generate go tool -modfile=../../tools/go.mod controller-gen crd:maxDescLen=400,allowDangerousTypes=true paths=. output:crd:dir=../../deploy/crds

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every type of this package.
var GroupVersion = schema.GroupVersion{Group: "fleet.harmony.dev", Version: "v1alpha1"}

// AddToScheme teaches a scheme the types of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Device{}, &DeviceList{}, &Deployment{}, &DeploymentList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// NamespaceLabel is on every Device: the namespace of the operator that owns it.
// The owner reference to that namespace is what counts; the label is there so
// that an operator, or kubectl, can ask for its own devices only.
const NamespaceLabel = "fleet.harmony.dev/namespace"

// Finalizer is on every Deployment until its devices have removed what it ran.
const Finalizer = "fleet.harmony.dev/deployment"

// DeploymentLabel is on every ControllerRevision of a Deployment: its name.
const DeploymentLabel = "fleet.harmony.dev/deployment"

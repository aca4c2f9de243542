package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Deployment runs a set of containers on every device that it selects. On a device
// it goes by its name, which must be one DNS label; where Deployments of two
// namespaces want one name, or one host port, the device keeps what came first and
// the other reports a conflict.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=fdeploy,categories=fleet
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.matched`
// +kubebuilder:printcolumn:name="Updated",type=integer,JSONPath=`.status.updated`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Rejected",type=integer,JSONPath=`.status.rejected`
// +kubebuilder:printcolumn:name="Offline",type=integer,JSONPath=`.status.offline`
// +kubebuilder:printcolumn:name="Rollout",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Revision",type=integer,JSONPath=`.status.revision`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Progressing")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="the name is that of the deployment on each device: 1 to 63 of a-z, 0-9 and '-', with no '-' at either end"
type Deployment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DeploymentSpec `json:"spec"`
	// +optional
	Status DeploymentStatus `json:"status,omitempty"`
}

// DeploymentSpec says what is to run, where, and how a change is brought there.
type DeploymentSpec struct {
	// Selector chooses the devices.
	Selector DeviceSelector `json:"selector"`
	// Score is what runs on each of them.
	Score Score `json:"score"`
	// Rollout says how a change of score is brought to them.
	//
	// +optional
	// +kubebuilder:default={}
	Rollout Rollout `json:"rollout,omitempty"`

	// RollbackTo makes the operator put the score of that revision back into spec.score
	// and clear this field, all in one update; 0 is the revision before the current one.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	RollbackTo *int64 `json:"rollbackTo,omitempty"`
	// RevisionHistoryLimit is how many earlier scores are kept to go back to.
	//
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	RevisionHistoryLimit *int32 `json:"revisionHistoryLimit,omitempty"`

	// Deletion says which devices a deletion waits for: All, the default, or Online,
	// which lets the Deployment go while devices that are offline still run it. They
	// remove it when they return either way.
	//
	// +optional
	// +kubebuilder:default=All
	Deletion DeletionWait `json:"deletion,omitempty"`
}

// DeletionWait says which devices the deletion of a Deployment waits for.
//
// +kubebuilder:validation:Enum=All;Online
type DeletionWait string

// The ways to wait.
const (
	WaitForAll    DeletionWait = "All"
	WaitForOnline DeletionWait = "Online"
)

// DeviceSelector chooses devices. A device is chosen where it is named, or where its
// spec.labels fit both matchLabels and matchExpressions, of which at least one is
// given. An empty selector chooses nothing; all: true chooses every device.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.all) && self.all && (has(self.names) || has(self.matchLabels) || has(self.matchExpressions)))",message="all stands alone"
type DeviceSelector struct {
	// All chooses every device of the operator's.
	//
	// +optional
	All bool `json:"all,omitempty"`
	// Names are device ids.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=10000
	// +listType=set
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Names []string `json:"names,omitempty"`

	// +optional
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// +optional
	MatchExpressions []metav1.LabelSelectorRequirement `json:"matchExpressions,omitempty"`
}

// Rollout says how a change reaches the devices: online ones only, in the order of
// their names, a batch at a time. Devices that are offline are not waited for; they
// get the change when they return, as a part of the then current batch.
type Rollout struct {
	// BatchSize is how many devices, as a number or as a share of the matched ones,
	// are at most on their way to the new revision at one time.
	//
	// +optional
	// +kubebuilder:default="25%"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 : self.matches('^([1-9][0-9]?|100)%$')",message="a number from 1, or a share from 1% to 100%"
	BatchSize *intstr.IntOrString `json:"batchSize,omitempty"`
	// MaxUnavailable is how many matched devices that are online, as a number or share,
	// may be not ready at one time, whatever the reason, for the rollout to take the
	// next one that is; one that is not can always be taken. Default: that of batchSize.
	//
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 : self.matches('^([1-9][0-9]?|100)%$')",message="a number from 1, or a share from 1% to 100%"
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
	// Paused keeps the rollout where it is. Devices that are not selected any more still
	// lose it.
	//
	// +optional
	Paused bool `json:"paused,omitempty"`
	// SuccessThreshold is the share, in percent, of the devices that are through with
	// the new revision of which it must run: below it, once a first batch is through,
	// the rollout stops by itself. Default 100.
	//
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	SuccessThreshold *int32 `json:"successThreshold,omitempty"`
	// ProgressDeadlineSeconds is how long a device that is online may take until the new
	// revision runs there; after it, it counts as failed. Default 600.
	//
	// +optional
	// +kubebuilder:default=600
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	ProgressDeadlineSeconds *int32 `json:"progressDeadlineSeconds,omitempty"`
	// ResumedAt lets a rollout that stopped by itself go on: devices that failed before
	// that time are tried anew. `fleet rollout resume` sets it.
	//
	// +optional
	ResumedAt *metav1.Time `json:"resumedAt,omitempty"`
}

// Condition types of a Deployment.
const (
	// DeploymentAvailable: every matched device that is online runs the current
	// revision.
	DeploymentAvailable = "Available"
	// DeploymentProgressing: a rollout is under way, or through. False where it is
	// paused, has stopped, or waits beyond its deadline.
	DeploymentProgressing = "Progressing"
	// DeploymentValid: the score can be rolled out at all.
	DeploymentValid = "Valid"
	// DeploymentConflict: on some device another deployment has the name or a host
	// port.
	DeploymentConflict = "Conflict"
)

// RolloutPhase is where the rollout stands, in one word.
type RolloutPhase string

// The phases.
const (
	RolloutProgressing RolloutPhase = "Progressing"
	RolloutPaused      RolloutPhase = "Paused"
	RolloutStopped     RolloutPhase = "Stopped"  // by itself: too many devices failed
	RolloutComplete    RolloutPhase = "Complete" // every matched device that is online is through, and enough of them run it
	RolloutInvalid     RolloutPhase = "Invalid"  // the score cannot be rolled out
	RolloutRemoving    RolloutPhase = "Removing" // the Deployment is being deleted
)

// DeploymentStatus is the truth of all matched devices. It is written when it changes,
// at most once a second.
type DeploymentStatus struct {
	// ObservedGeneration is the generation of the spec that all below speaks of.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Phase RolloutPhase `json:"phase,omitempty"`
	// Revision counts the scores of this Deployment; each is kept in a
	// ControllerRevision.
	//
	// +optional
	Revision int64 `json:"revision,omitempty"`
	// RolloutStartedAt is when the current revision, or its resumption, began.
	//
	// +optional
	RolloutStartedAt *metav1.Time `json:"rolloutStartedAt,omitempty"`

	// Matched devices are those that the selector chooses. The numbers below are of
	// them, and each device is counted in as many as apply.
	Matched int32 `json:"matched"`
	// Updated have the current revision in their desired state.
	Updated int32 `json:"updated"`
	// Ready run the current revision, by their own word, and are online.
	Ready int32 `json:"ready"`
	// Rejected have refused the current revision.
	Rejected int32 `json:"rejected"`
	// Failed have the current revision and did not get it to run in time, the rejected
	// ones included.
	Failed int32 `json:"failed"`
	// Offline are not online.
	Offline int32 `json:"offline"`
	// Conflicts are devices that cannot take this Deployment beside others.
	Conflicts int32 `json:"conflicts"`
	// Paused are devices whose spec.paused is set.
	Paused int32 `json:"paused"`

	// Failures are some of the devices that failed, by name, with what they report; at
	// most 10.
	//
	// +optional
	// +listType=map
	// +listMapKey=device
	Failures []DeviceFailure `json:"failures,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DeviceFailure is what one device reports of a revision that does not run there.
type DeviceFailure struct {
	Device string `json:"device"`
	// Phase is that of the device's report, or timeout, or conflict.
	Phase   string `json:"phase"`
	Message string `json:"message,omitempty"`
}

// DeploymentList is a list of Deployments.
//
// +kubebuilder:object:root=true
type DeploymentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Deployment `json:"items"`
}

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Device is one device of the fleet; its name is the device id. The operator makes
// it when the device first reports, and again where it was deleted and the device
// still reports. It is never deleted by the operator; it goes with the operator's
// namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=fdev,categories=fleet
// +kubebuilder:printcolumn:name="Online",type=string,JSONPath=`.status.conditions[?(@.type=="Online")].status`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Runtime",type=string,JSONPath=`.status.runtime`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.agentVersion`
// +kubebuilder:printcolumn:name="Deployments",type=string,JSONPath=`.status.summary`
// +kubebuilder:printcolumn:name="Paused",type=boolean,JSONPath=`.spec.paused`,priority=1
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Last-Seen",type=date,JSONPath=`.status.lastHeartbeatTime`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="the name is the device id: 1 to 63 of a-z, 0-9 and '-', with no '-' at either end"
type Device struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec DeviceSpec `json:"spec,omitempty"`
	// +optional
	Status DeviceStatus `json:"status,omitempty"`
}

// DeviceSpec is what people say of a device.
type DeviceSpec struct {
	// Labels are what Deployments, and fleet's -l, select the device by. They are
	// kept the same as those that `fleet label` gives: whichever was changed last
	// counts. What a device says of itself is in status.labels and selects nothing.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",message="a key is a Kubernetes label key, for example site or example.com/site"
	// +kubebuilder:validation:XValidation:rule="self.all(k, self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$'))",message="a value has at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', and begins and ends with a letter or digit"
	Labels map[string]LabelValue `json:"labels,omitempty"`

	// Paused keeps the desired state of the device as it is: no Deployment is brought
	// to it, changed on it or removed from it.
	//
	// +optional
	Paused bool `json:"paused,omitempty"`
}

// LabelValue is the value of a label.
//
// +kubebuilder:validation:MaxLength=63
type LabelValue string

// Condition types of a Device.
const (
	// DeviceOnline: heartbeats arrive. False 45 s after the last one, or sooner where
	// the broker says that the device's connection is gone.
	DeviceOnline = "Online"
	// DeviceReady: the device is online, and everything that it was told to run runs.
	DeviceReady = "Ready"
)

// Reasons of a Device's conditions.
const (
	ReasonHeartbeats         = "Heartbeats"         // Online: they arrive
	ReasonHeartbeatsLost     = "HeartbeatsLost"     // not Online: none for 45 s
	ReasonDisconnected       = "Disconnected"       // not Online: the broker saw the connection end
	ReasonNeverSeen          = "NeverSeen"          // not Online: a status and no heartbeat
	ReasonBrokerAway         = "BrokerAway"         // Unknown: the operator has no connection to the broker
	ReasonAsDesired          = "AsDesired"          // Ready
	ReasonOffline            = "Offline"            // not Ready
	ReasonRuntimeUnavailable = "RuntimeUnavailable" // not Ready: no container engine
	ReasonDeploymentsUnready = "DeploymentsUnready" // not Ready
	ReasonDeviceReports      = "DeviceReports"      // not Ready: a condition of the device's own says so
)

// DeviceStatus is what is known of a device. It is written when something else than
// the time of the last heartbeat changes.
type DeviceStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// ObservedGeneration is the generation of the spec that the operator has acted on.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// +optional
	AgentVersion string `json:"agentVersion,omitempty"`
	// BootID is that of the device's kernel: another one means a restart.
	//
	// +optional
	BootID string `json:"bootID,omitempty"`
	// Instance is that of the agent's run.
	//
	// +optional
	Instance string `json:"instance,omitempty"`
	// Runtime is ready, disabled or unavailable.
	//
	// +optional
	Runtime string `json:"runtime,omitempty"`
	// Labels are what the device says of itself. They select nothing.
	//
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// LastHeartbeatTime is when the broker stored the last heartbeat, as of the last
	// write of this status; while the device is online it may be newer.
	//
	// +optional
	LastHeartbeatTime *metav1.Time `json:"lastHeartbeatTime,omitempty"`
	// LabelsRevision is the revision of the broker's copy of the labels that
	// spec.labels was last the same as.
	//
	// +optional
	LabelsRevision int64 `json:"labelsRevision,omitempty"`
	// DesiredRevision is the revision of the desired state that the device has.
	//
	// +optional
	DesiredRevision int64 `json:"desiredRevision,omitempty"`
	// Summary is how many deployments run of how many, for people: "2/3".
	//
	// +optional
	Summary string `json:"summary,omitempty"`
	// Deployments are those that the device reports, by name; at most 256.
	//
	// +optional
	Deployments map[string]DeviceDeployment `json:"deployments,omitempty"`
}

// DeviceDeployment is where one deployment stands on the device.
type DeviceDeployment struct {
	// Phase is pending, pulling, starting, running, backoff, exited, failed, removing,
	// rejected or runtime_unavailable.
	Phase string `json:"phase"`
	// Revision of the desired state that this speaks of.
	Revision int64 `json:"revision"`
	// Message is the first fault of the deployment or of one of its services.
	//
	// +optional
	Message string `json:"message,omitempty"`
	// Services are the phases of its containers by name.
	//
	// +optional
	Services map[string]string `json:"services,omitempty"`
}

// DeviceList is a list of devices.
//
// +kubebuilder:object:root=true
type DeviceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Device `json:"items"`
}

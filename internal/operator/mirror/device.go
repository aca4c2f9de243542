package mirror

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
)

// Device is what is known of one device. It is a value, and nothing that it points
// to is ever changed.
type Device struct {
	ID string

	// Status is the device's last word; nil: none yet, or none that could be read.
	// What no controller reads is left out of it (of services there remain phase,
	// exit code and last error), and what is too large is cut: it is made by the
	// device.
	Status *command.Status
	// StatusSeq is where the status is stored; 0: there is none.
	StatusSeq uint64
	// StatusFault says why the last status cannot be read; empty: it can, or there is
	// none.
	StatusFault string

	// Online says whether heartbeats arrive. While the broker is away it stays as it
	// was.
	Online bool
	// OnlineReason is one of the v1alpha1 reasons of the condition Online. It is
	// v1alpha1.ReasonBrokerAway where the broker has been away for a while.
	OnlineReason string
	// LastHeartbeat is when the broker stored the last one; zero: there was none.
	LastHeartbeat time.Time

	// Labels are those of the bucket device-labels, at LabelsRevision; 0: never set.
	Labels         map[string]string
	LabelsRevision uint64
	// LabelsFault says why they cannot be read; Labels are empty then. Empty: they can.
	LabelsFault string

	Document Document
}

// Document is the desired state of one device.
type Document struct {
	// Revision is that to expect in [Mirror.Put]; 0: none was ever written.
	Revision uint64
	// Stored is when the broker stored it.
	Stored time.Time
	// Deleted says that the last revision is a delete marker.
	Deleted bool
	// Fault says why the document cannot be read; State is empty then, and the device
	// goes on with what it ran before. Empty: it can be read.
	Fault string

	State command.DesiredState
	// Owners are, by the name of the deployment, "namespace/name" of the Deployment
	// that wrote it. A deployment without one was written by somebody else.
	Owners map[string]string
}

// Reported tells whether the device ever said something: only then is there an
// object for it.
func (d Device) Reported() bool { return d.StatusSeq != 0 }

// Ready tells whether the device is online and runs everything that it was told to
// run, as one of the v1alpha1 reasons and in words.
func (d Device) Ready() (ready bool, reason, message string) {
	s := d.Status
	switch {
	case !d.Online:
		return false, v1alpha1.ReasonOffline, "the device is not online"
	case s == nil:
		return false, v1alpha1.ReasonDeviceReports, "its last status cannot be read: " + d.StatusFault
	case s.Runtime == command.RuntimeUnavailable:
		return false, v1alpha1.ReasonRuntimeUnavailable, "its container engine does not answer"
	}
	for _, c := range s.Conditions {
		if c.Status && (c.Type == command.ConditionIDClash || c.Type == command.ConditionDesiredStateInvalid) {
			return false, v1alpha1.ReasonDeviceReports, c.Type + ": " + c.Message
		}
	}
	if len(s.Deployments) > 0 && s.Runtime != command.RuntimeReady {
		return false, v1alpha1.ReasonRuntimeUnavailable, "it is to run containers and has no container engine"
	}
	if s.DesiredRevision < d.Document.Revision {
		return false, v1alpha1.ReasonDeploymentsUnready, fmt.Sprintf("it has not taken up revision %d of its desired state yet", d.Document.Revision)
	}
	var first string
	running := 0
	for _, name := range slices.Sorted(maps.Keys(s.Deployments)) {
		if s.Deployments[name].Phase.AsDesired() {
			running++
		} else if first == "" {
			first = fmt.Sprintf("%s is %s", name, s.Deployments[name].Phase)
			if text := s.Deployments[name].Fault(); text != "" {
				first += ": " + text
			}
		}
	}
	if first != "" {
		return false, v1alpha1.ReasonDeploymentsUnready, fmt.Sprintf("%d of %d deployments run; %s", running, len(s.Deployments), first)
	}
	return true, v1alpha1.ReasonAsDesired, fmt.Sprintf("%d of %d deployments run", running, len(s.Deployments))
}

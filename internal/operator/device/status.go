package device

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/operator/mirror"
)

// newStatus is the status that an object should have by what is known of its device.
// LabelsRevision and ObservedGeneration stay as they are.
func newStatus(object *v1alpha1.Device, d mirror.Device) v1alpha1.DeviceStatus {
	if d.OnlineReason == v1alpha1.ReasonBrokerAway {
		return awayStatus(object.Status)
	}
	status := v1alpha1.DeviceStatus{
		LabelsRevision: object.Status.LabelsRevision, ObservedGeneration: object.Status.ObservedGeneration,
		Conditions: append([]metav1.Condition(nil), object.Status.Conditions...),
	}
	if !d.LastHeartbeat.IsZero() {
		at := metav1.NewTime(d.LastHeartbeat)
		status.LastHeartbeatTime = &at
	}
	if s := d.Status; s != nil {
		status.AgentVersion, status.BootID, status.Instance = s.AgentVersion, s.BootID, s.Instance
		status.Runtime, status.Labels, status.DesiredRevision = string(s.Runtime), s.Labels, int64(s.DesiredRevision)
		status.Summary, status.Deployments = deployments(s.Deployments)
	}
	reason := d.OnlineReason
	if reason == "" {
		reason = v1alpha1.ReasonNeverSeen
	}
	setCondition(&status, v1alpha1.DeviceOnline, truth(d.Online), reason, onlineText[reason])
	ready, reason, message := d.Ready()
	setCondition(&status, v1alpha1.DeviceReady, truth(ready), reason, message)
	return status
}

// awayStatus is the status while nobody can know: as it was, and not certain.
func awayStatus(was v1alpha1.DeviceStatus) v1alpha1.DeviceStatus {
	was.Conditions = append([]metav1.Condition(nil), was.Conditions...)
	for _, condition := range []string{v1alpha1.DeviceOnline, v1alpha1.DeviceReady} {
		setCondition(&was, condition, metav1.ConditionUnknown, v1alpha1.ReasonBrokerAway, onlineText[v1alpha1.ReasonBrokerAway])
	}
	return was
}

// onlineText says in words what the reasons of the condition Online mean. No time is
// in it: it would make every heartbeat a change.
var onlineText = map[string]string{
	v1alpha1.ReasonHeartbeats:     "heartbeats arrive",
	v1alpha1.ReasonHeartbeatsLost: "no heartbeat for 45 s",
	v1alpha1.ReasonDisconnected:   "its connection to the broker ended, and no heartbeat came since",
	v1alpha1.ReasonNeverSeen:      "it reported a status and no heartbeat",
	v1alpha1.ReasonBrokerAway:     "the operator is not connected to the broker",
}

func deployments(of map[string]command.DeploymentStatus) (summary string, all map[string]v1alpha1.DeviceDeployment) {
	running := 0
	for name, s := range of {
		if all == nil {
			all = make(map[string]v1alpha1.DeviceDeployment, len(of))
		}
		if s.Phase.AsDesired() {
			running++
		}
		d := v1alpha1.DeviceDeployment{Phase: string(s.Phase), Revision: int64(s.Revision), Message: s.Fault()}
		for service, v := range s.Services {
			if d.Services == nil {
				d.Services = make(map[string]string, len(s.Services))
			}
			d.Services[service] = string(v.Phase)
		}
		all[name] = d
	}
	return fmt.Sprintf("%d/%d", running, len(of)), all
}

func setCondition(status *v1alpha1.DeviceStatus, condition string, truth metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: condition, Status: truth, Reason: reason, Message: message})
}

func truth(b bool) metav1.ConditionStatus {
	if b {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}

// tellOnline makes an event where a device came or went.
func (r *Reconciler) tellOnline(object *v1alpha1.Device, before, now []metav1.Condition) {
	was, is := meta.FindStatusCondition(before, v1alpha1.DeviceOnline), meta.FindStatusCondition(now, v1alpha1.DeviceOnline)
	switch {
	case is == nil || was == nil || was.Status == is.Status: // the first is told as its registration
	case is.Status == metav1.ConditionTrue && was.Status == metav1.ConditionFalse:
		r.Events.Event(object, corev1.EventTypeNormal, EventOnline, is.Message)
	case is.Status == metav1.ConditionFalse:
		r.Events.Event(object, corev1.EventTypeWarning, EventOffline, is.Message)
	}
}

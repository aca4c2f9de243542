package deployment

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/harmony-fleet/fleet/api/v1alpha1"
)

var (
	descDeployments = prometheus.NewDesc("fleet_operator_deployments",
		"Deployments by the phase of their rollout.", []string{"phase"}, nil)
	descDevices = prometheus.NewDesc("fleet_operator_deployment_devices",
		"Devices of a Deployment by what they are to it, as in its status.", []string{"namespace", "deployment", "state"}, nil)
)

var phases = []v1alpha1.RolloutPhase{
	v1alpha1.RolloutProgressing, v1alpha1.RolloutPaused, v1alpha1.RolloutStopped,
	v1alpha1.RolloutComplete, v1alpha1.RolloutInvalid, v1alpha1.RolloutRemoving,
}

// Describe is for Prometheus.
func (r *Controller) Describe(ch chan<- *prometheus.Desc) {
	ch <- descDeployments
	ch <- descDevices
}

// Collect is for Prometheus: the controller is registered as a collector.
func (r *Controller) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int32, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count := map[v1alpha1.RolloutPhase]int32{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, st := range r.states {
		s := st.shown.Load()
		if s == nil {
			continue
		}
		count[s.Phase]++
		for state, n := range map[string]int32{
			"matched": s.Matched, "updated": s.Updated, "ready": s.Ready, "rejected": s.Rejected,
			"failed": s.Failed, "offline": s.Offline, "conflicts": s.Conflicts, "paused": s.Paused,
		} {
			gauge(descDevices, n, key.Namespace, key.Name, state)
		}
	}
	for _, phase := range phases {
		gauge(descDeployments, count[phase], string(phase))
	}
}

package mirror

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descConnected = prometheus.NewDesc("fleet_operator_nats_connected",
		"1 while the operator is connected to the broker.", nil, nil)
	descCurrent = prometheus.NewDesc("fleet_operator_mirror_current",
		"1 while the operator has read everything that the broker has.", nil, nil)
	descLag = prometheus.NewDesc("fleet_operator_mirror_lag_messages",
		"Messages of a stream that the broker holds and the operator has not read.", []string{"stream"}, nil)
	descDevices = prometheus.NewDesc("fleet_operator_devices",
		"Devices that have reported, by whether they are online and run what they should.", []string{"online", "ready"}, nil)
	descUnreadable = prometheus.NewDesc("fleet_operator_unreadable_messages_total",
		"Messages of devices and documents that could not be read, by what they are.", []string{"kind"}, nil)
	descWritten = prometheus.NewDesc("fleet_operator_documents_written_total",
		"Desired states written.", nil, nil)
	descConflicts = prometheus.NewDesc("fleet_operator_write_conflicts_total",
		"Writes to the broker that were refused since somebody else wrote first; they are tried again.", nil, nil)
)

// Describe is for Prometheus.
func (m *Mirror) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConnected, descCurrent, descLag, descDevices, descUnreadable, descWritten, descConflicts} {
		ch <- d
	}
}

// Collect is for Prometheus: a mirror is registered as a collector.
func (m *Mirror) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	one := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(descConnected, one(m.nc.IsConnected()))
	gauge(descCurrent, one(m.NotCurrent() == nil))
	for _, f := range m.feeds {
		gauge(descLag, float64(f.pending.Load()), f.stream)
		counter(descUnreadable, m.unreadable[f.part].Load(), partNames[f.part])
	}
	counter(descWritten, m.written.Load())
	counter(descConflicts, m.conflicts.Load())
	var count [2][2]int
	for d := range m.All() {
		if d.Reported() {
			ready, _, _ := d.Ready()
			count[int(one(d.Online))][int(one(ready))]++
		}
	}
	for online := range count {
		for ready := range count[online] {
			gauge(descDevices, float64(count[online][ready]), strconv.FormatBool(online == 1), strconv.FormatBool(ready == 1))
		}
	}
}

package callout

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics of one service, in a registry of its own. docs/callout.md lists them.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	dropped  *prometheus.CounterVec
}

func newMetrics(s *Service) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fleet_callout_requests_total",
			Help: "Logins answered, by result (allowed, denied, probe) and, for denials, reason.",
		}, []string{"result", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "fleet_callout_request_duration_seconds",
			Help:    "Time from the arrival of a request to its answer, waiting included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 1.5, 2},
		}, []string{"result"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fleet_callout_dropped_total",
			Help: "Requests dropped unanswered: stale (waited longer than max_age) or overflow (queue full).",
		}, []string{"why"}),
	}
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	m.registry.MustRegister(m.requests, m.duration, m.dropped,
		gauge("fleet_callout_queue_depth", "Requests waiting for a worker.", func() float64 { return float64(s.queue.len()) }),
		gauge("fleet_callout_ready", "1 if the last self-probe was answered and keys are there.", func() float64 {
			if s.NotReady() == nil {
				return 1
			}
			return 0
		}),
		issuerCollector{s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	for _, why := range []string{"stale", "overflow"} { // so that rates exist before the first
		m.dropped.WithLabelValues(why)
	}
	m.requests.WithLabelValues("allowed", "")
	return m
}

func (m *metrics) done(result, reason string, d time.Duration) {
	m.requests.WithLabelValues(result, reason).Inc()
	m.duration.WithLabelValues(result).Observe(d.Seconds())
}

var (
	descKeyAge = prometheus.NewDesc("fleet_callout_issuer_keys_age_seconds",
		"Time since the issuer's keys were last fetched; absent until they were.", []string{"issuer"}, nil)
	descKeys = prometheus.NewDesc("fleet_callout_issuer_keys",
		"Keys of the issuer in use.", []string{"issuer"}, nil)
	descFetches = prometheus.NewDesc("fleet_callout_issuer_fetches_total",
		"Fetches of the issuer's keys, by result (ok, error).", []string{"issuer", "result"}, nil)
)

// issuerCollector reads the key caches when it is asked.
type issuerCollector struct{ s *Service }

func (c issuerCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descKeyAge
	ch <- descKeys
	ch <- descFetches
}

func (c issuerCollector) Collect(ch chan<- prometheus.Metric) {
	for url, iss := range c.s.issuers {
		st := iss.verifier.Stats()
		if !st.LastSuccess.IsZero() {
			ch <- prometheus.MustNewConstMetric(descKeyAge, prometheus.GaugeValue, time.Since(st.LastSuccess).Seconds(), url)
		}
		ch <- prometheus.MustNewConstMetric(descKeys, prometheus.GaugeValue, float64(st.Keys), url)
		ch <- prometheus.MustNewConstMetric(descFetches, prometheus.CounterValue, float64(st.Fetches-st.FetchErrors), url, "ok")
		ch <- prometheus.MustNewConstMetric(descFetches, prometheus.CounterValue, float64(st.FetchErrors), url, "error")
	}
}

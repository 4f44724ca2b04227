// Package metrics renders the agent's state for Prometheus and answers the liveness probe. It is the only importer
// of client_golang; everything it shows comes from the same Status snapshot that the socket hands out, but for the
// counters, which the agent advances as things happen.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"spillway/agent/status"
)

// maxKilled bounds the series of spillway_oom_kills_total; kills of further containers count under "(other)".
const maxKilled = 1000

// Metrics holds the registry and the counters.
type Metrics struct {
	registry  *prometheus.Registry
	get       func() *status.Status
	oomKills  *prometheus.CounterVec
	decisions *prometheus.CounterVec
	evictions *prometheus.CounterVec
	outcomes  *prometheus.CounterVec
	judged    *prometheus.CounterVec
	reclaims  *prometheus.CounterVec
	reclaimed prometheus.Counter
	brakes    *prometheus.CounterVec
	braked    *prometheus.CounterVec
	replaced  *prometheus.CounterVec
	replacing *prometheus.CounterVec
	exits     *prometheus.CounterVec
	incidents *prometheus.CounterVec
	unkept    prometheus.Counter
	sent      prometheus.Histogram
	late      prometheus.Histogram
	latency   prometheus.Histogram
	oomEvents *prometheus.CounterVec
	oomMissed prometheus.Counter
	configs   *prometheus.CounterVec
	configOK  prometheus.Gauge
	mu        sync.Mutex // guards killed
	killed    map[killKey]bool

	own []prometheus.Collector // all but those of the Go runtime and the process
}

// killKey is what kills are counted by.
type killKey struct{ namespace, pod, container, domain string }

// DefaultPods is how many pods have series of their own by default: more than a kubelet's usual 110.
const DefaultPods = 250

// New makes the registry. So many pods, those with the largest working set first, have series of their own. get returns the
// newest snapshot, nil before the first.
func New(version string, pods int, get func() *status.Status) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		get:      get,
		oomKills: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_oom_kills_total",
			Help: "Processes killed by the kernel for lack of memory, by pod and container (empty: outside the pods) and by whose memory had run out: container, pod, kubepods, cgroup (any other), node, cpuset, mempolicy or unknown."},
			[]string{"namespace", "pod", "container", "domain"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_decisions_total",
			Help: "Looks at the pods at level evict or above, by what came of it."}, []string{"state"}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_evictions_total",
			Help: "Evictions that ended, each counted once, by the pod's namespace, result and whether they were dry runs: released, overdue, refused, vanished, not-evicted or would-evict."}, []string{"namespace", "result", "dry_run"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_eviction_state_transitions_total",
			Help: "States that evictions reached; one eviction counts under several: in-flight (accepted), shortened, released."}, []string{"namespace", "state", "dry_run"}),
		judged: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_would_evictions_judged_total",
			Help: "Evictions that observe mode did not ask for, by what happened afterwards: crossed, acted, ended or not-judged."}, []string{"verdict"}),
		reclaims: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_reclaims_total",
			Help: "Reclaims of a pod's page cache by what came of them."}, []string{"state"}),
		reclaimed: prometheus.NewCounter(prometheus.CounterOpts{Name: "spillway_reclaimed_bytes_total",
			Help: "Page cache that pods gave back at once when it was reclaimed."}),
		brakes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_brakes_total",
			Help: "Brakes on victims (memory.high) that ended, each counted once, by result."}, []string{"result"}),
		braked: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_brake_state_transitions_total",
			Help: "States that brakes on victims reached; one brake counts under several."}, []string{"state"}),
		replaced: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_replacements_total",
			Help: "Replacements of evicted pods that are followed no more, each counted once, by result."}, []string{"result"}),
		replacing: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_replacement_state_transitions_total",
			Help: "States that replacements of evicted pods reached; one replacement counts under several. late: none ran within 15 min."}, []string{"state"}),
		exits: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_container_exits_total",
			Help: "Containers that ended with a code other than 0, by why they did."}, []string{"cause"}),
		incidents: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_incidents_total",
			Help: "Incidents that began, by what they began with."}, []string{"kind"}),
		unkept: prometheus.NewCounter(prometheus.CounterOpts{Name: "spillway_incidents_dropped_total",
			Help: "Triggers and parts of incidents that were not kept: too many at a time, or the ledger did not keep up."}),
		configs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_config_reloads_total",
			Help: "Changes of the config file by what came of them: applied or refused."}, []string{"result"}),
		configOK: prometheus.NewGauge(prometheus.GaugeOpts{Name: "spillway_config_last_reload_successful",
			Help: "1: the newest change of the config file is in force, or there was none; 0: it was refused and the settings from before stay."}),
		late: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "spillway_loop_lateness_seconds",
			Help:    "How long after its planned time a sample of the node was looked at.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
		sent: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "spillway_eviction_request_latency_seconds",
			Help:    "From the sample that decided to the Eviction request on the wire.",
			Buckets: []float64{.005, .01, .025, .05, .1, .15, .25, .5, 1, 3}}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "spillway_oom_event_latency_seconds",
			Help:    "From the kernel's mark of an OOM victim to the agent's record of it.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, 1}}),
		oomEvents: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_oom_events_total",
			Help: "OOM kills, a group kill counted once, by whose memory had run out and by the source that told of it."}, []string{"domain", "source"}),
		oomMissed: prometheus.NewCounter(prometheus.CounterOpts{Name: "spillway_oom_kills_missed_total",
			Help: "Processes killed by the kernel that only its counters told of."}),
		killed: map[killKey]bool{},
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "spillway_build_info", Help: "Constant 1, labelled with the version.",
		ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.own = []prometheus.Collector{m.oomKills, m.decisions, m.evictions, m.outcomes, m.judged, m.reclaims, m.reclaimed, m.brakes, m.braked, m.replaced, m.replacing, m.exits, m.incidents, m.unkept, m.configs, m.configOK, m.late, m.sent, m.latency, m.oomEvents, m.oomMissed, build, &snapshot{get, pods}}
	m.registry.MustRegister(m.own...)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.configOK.Set(1)
	for _, v := range status.Verdicts { // an increase from nothing is not seen
		m.judged.WithLabelValues(v)
	}
	return m
}

// OOMKill counts the victims of one kill.
func (m *Metrics) OOMKill(k *status.OOMKill) {
	valid := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	key := killKey{valid(k.Namespace), valid(k.Pod), valid(k.Container), k.Domain}
	m.mu.Lock()
	if !m.killed[key] {
		if len(m.killed) >= maxKilled {
			key = killKey{"(other)", "(other)", "(other)", k.Domain}
		}
		m.killed[key] = true
	}
	m.mu.Unlock()
	m.oomKills.WithLabelValues(key.namespace, key.pod, key.container, key.domain).Add(float64(k.Victims))
	m.oomEvents.WithLabelValues(k.Domain, k.Source).Inc()
	if k.LatencySeconds != nil {
		m.latency.Observe(*k.LatencySeconds)
	}
}

// OOMMissed counts processes whose kill nobody told of.
func (m *Metrics) OOMMissed(n uint64) { m.oomMissed.Add(float64(n)) }

// Decision counts one decision by its state.
func (m *Metrics) Decision(state string) { m.decisions.WithLabelValues(state).Inc() }

// Eviction counts a state that an eviction reached, and the eviction itself when it has ended with that state.
func (m *Metrics) Eviction(namespace, state string, dryRun, ended bool) {
	m.outcomes.WithLabelValues(namespace, state, fmt.Sprint(dryRun)).Inc()
	if ended {
		m.evictions.WithLabelValues(namespace, state, fmt.Sprint(dryRun)).Inc()
	}
}

// Judged counts one would-be eviction by its verdict.
func (m *Metrics) Judged(verdict string) { m.judged.WithLabelValues(verdict).Inc() }

// Sent notes how long it took from the sample that decided to the Eviction request on the wire.
func (m *Metrics) Sent(latency time.Duration) { m.sent.Observe(latency.Seconds()) }

// Reclaim counts one reclaim of page cache and the bytes that it gave back.
func (m *Metrics) Reclaim(state string, back uint64) {
	m.reclaims.WithLabelValues(state).Inc()
	m.reclaimed.Add(float64(back))
}

// Brake counts a state that a brake reached, and the brake itself when it has ended with that state.
func (m *Metrics) Brake(state string, ended bool) { reached(m.braked, m.brakes, state, ended) }

// Replacement does the same for the replacement of an evicted pod.
func (m *Metrics) Replacement(state string, ended bool) {
	reached(m.replacing, m.replaced, state, ended)
}

func reached(transitions, results *prometheus.CounterVec, state string, ended bool) {
	transitions.WithLabelValues(state).Inc()
	if ended {
		results.WithLabelValues(state).Inc()
	}
}

// Late observes how late the loop looked at a sample.
func (m *Metrics) Late(d time.Duration) { m.late.Observe(d.Seconds()) }

// Exit counts one ended container by its cause.
func (m *Metrics) Exit(cause string) { m.exits.WithLabelValues(cause).Inc() }

// Incident counts one incident that began.
func (m *Metrics) Incident(kind string) { m.incidents.WithLabelValues(kind).Inc() }

// IncidentDropped counts a trigger, or a part of an incident, that was not kept.
func (m *Metrics) IncidentDropped() { m.unkept.Inc() }

// What came of a change of the config file: see Config.
const (
	ConfigApplied = "applied"
	ConfigRefused = "refused"
)

// Config counts a change of the config file.
func (m *Metrics) Config(result string) {
	m.configs.WithLabelValues(result).Inc()
	m.ConfigInForce(result == ConfigApplied)
}

// ConfigInForce says whether what the config file says is in force.
func (m *Metrics) ConfigInForce(yes bool) {
	m.configOK.Set(0)
	if yes {
		m.configOK.Set(1)
	}
}

// Registry returns the registry, for tests that lint it.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Description is what a reader of the metrics page has to know of one metric.
type Description struct {
	Name, Type, Help string
	Labels           []string
}

var described = regexp.MustCompile(`^Desc\{fqName: (".*?"), help: ("(?:[^"\\]|\\.)*"), unit: ".*?", constLabels: \{(.*?)\}, variableLabels: \{(.*?)\}\}$`)

// Describe lists all metrics of the agent's own that there may be, by name: what rules and dashboards can ask for.
func (m *Metrics) Describe() (out []Description) {
	for _, c := range m.own {
		kind := ""
		switch c.(type) {
		case prometheus.Histogram:
			kind = "histogram"
		case prometheus.Gauge: // which has a Counter's methods, too
			kind = "gauge"
		case prometheus.Counter, *prometheus.CounterVec:
			kind = "counter"
		}
		ch := make(chan *prometheus.Desc, 256)
		c.Describe(ch)
		close(ch)
		for desc := range ch {
			part := described.FindStringSubmatch(desc.String())
			d := Description{Type: kind}
			for i, to := range []*string{&d.Name, &d.Help} {
				*to, _ = strconv.Unquote(part[i+1])
			}
			if kind == "" { // of the snapshot; the linter holds the names to it
				d.Type = "gauge"
				if strings.HasSuffix(d.Name, "_total") {
					d.Type = "counter"
				}
			}
			for label := range strings.FieldsFuncSeq(part[3]+","+part[4], func(r rune) bool { return r == ',' }) {
				label, _, _ = strings.Cut(strings.TrimSpace(label), "=")
				d.Labels = append(d.Labels, label)
			}
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b Description) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Listen takes a TCP address for Serve.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics on %s: %w", addr, err)
	}
	return l, nil
}

// Serve serves /metrics, and /healthz by alive (nil means well), until ctx ends. It closes the listener.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, alive func() error) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := alive(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}

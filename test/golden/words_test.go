package golden

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"

	"spillway/agent/status"
)

// masks makes what the agent prints the same text on each run and each machine: names of this run get a name of their own,
// moments and figures a placeholder. Names, states, structure and the words of a reason stay.
type masks struct {
	names *strings.Replacer
	calm  bool // the story waits for what is read every 15 s
}

// newMasks knows the run's own names, and from a status what this machine says of BPF.
func newMasks(r *run, s *status.Status) (*masks, error) {
	i := slices.IndexFunc(s.OOMWatch.Rungs, func(r status.OOMRung) bool { return r.Name == "bpf" })
	if i < 0 {
		return nil, fmt.Errorf("no rung bpf in %+v", s.OOMWatch.Rungs)
	}
	bpf := s.OOMWatch.Rungs[i]
	pairs := []string{"no bpf: " + bpf.Detail + " (" + bpf.Remedy + ")", "no bpf: $BPF", bpf.Detail, "$BPF", r.api.Host, "$API", r.listen, "$METRICS", r.dir, "$DIR"}
	for _, p := range []*pod{&cart, &leaky, &dns} {
		pairs = append(pairs, p.uid, "$UID-"+p.name, p.container, "$ID-"+p.name)
	}
	return &masks{names: strings.NewReplacer(pairs...), calm: r.calm}, nil
}

var (
	moment   = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
	decision = regexp.MustCompile(`\b\d{4}-\d{6}-(\d+)\b`)
	// A word keeps its digits: memory.events, v1.36.3, inc-2. A number loses them with its unit of bytes or of a duration.
	token = regexp.MustCompile(`[\pL_$/][\pL\pN_$/.-]*|[-+]?\d+(\.\d+)?(e[+-]?\d+)?(( ?[KMG]iB| B)\b|((ns|µs|ms|s|m|h)(\d+(\.\d+)?(ns|µs|ms|s|m|h))*)\b)?`)
	size  = regexp.MustCompile(`( ?[KMG]iB| B)$`)
	// What is covered of the short windows depends on how fast the agent samples.
	trend  = regexp.MustCompile(`\b(short|long) unknown`)
	polled = regexp.MustCompile(`\bpoll /\S+/memory\.events`)                                         // the first of those that are known
	late   = regexp.MustCompile(`; late: memory comes back in \d+ s, the threshold is [\d.]+ s away`) // on a busy machine
	stalls = regexp.MustCompile(`^memory stall   .*`)
)

// text masks one line of words.
func (m *masks) text(s string) string {
	s = moment.ReplaceAllString(m.names.Replace(s), "$$TIME")
	s = polled.ReplaceAllString(late.ReplaceAllString(s, ""), "poll $$GROUP/memory.events")
	s = trend.ReplaceAllString(decision.ReplaceAllString(s, "$$DECISION-$1"), "$1 SIZE/s")
	return token.ReplaceAllStringFunc(s, func(t string) string {
		switch c := strings.TrimLeft(t, "-+"); {
		case c == "" || c[0] < '0' || c[0] > '9':
			return t
		case size.MatchString(t):
			return "SIZE"
		}
		return "N"
	})
}

var (
	gap  = regexp.MustCompile(` {2,}`)
	plot = regexp.MustCompile(`[▁▂▃▄▅▆▇█]|^ *\^ \d`) // figures, and the moment of an incident among them
	// How the node was when an incident began, and how far its series go, depends on a moment.
	begun = regexp.MustCompile(`at level evict \([^()]*\)`)
	reach = regexp.MustCompile(`until it$|to N s after it$`)
	grew  = regexp.MustCompile(`(How it grew is not known|Without page cache it grew by SIZE/s over N s)\.`)
)

// story masks an incident's story. Where its lines end depends on the figures in them: a paragraph or a table is one line.
func (m *masks) story(s string) string {
	var out []string
	for paragraph := range strings.SplitSeq(s, "\n\n") {
		var words []string
		for line := range strings.Lines(paragraph) {
			if !plot.MatchString(line) {
				words = append(words, strings.Fields(line)...)
			}
		}
		line := begun.ReplaceAllString(m.text(strings.Join(words, " ")), "at level evict ($$REASON)")
		out = append(out, reach.ReplaceAllString(grew.ReplaceAllString(line, "$$GROWTH."), "$$REACH"))
	}
	return strings.Join(out, "\n") + "\n"
}

// table masks what a command prints for people; the width of a column depends on the figures in it.
func (m *masks) table(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		line = stalls.ReplaceAllString(line, "memory stall   $$WINDOWS\n")
		line = strings.TrimRight(gap.ReplaceAllString(m.text(strings.TrimRight(line, "\n")), "  "), " ")
		switch {
		case strings.HasPrefix(line, "bpf  missing"):
			line = "bpf  missing  $BPF" // what to do about it is this machine's
		case strings.HasPrefix(line, "loop  "):
			line = "loop  $HOST" // a busy machine makes the agent late
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n") + "\n"
}

// exact are the numbers of JSON that a story determines.
var exact = []string{"httpCode", "code", "priority", "rank", "of", "victims", "hourlyCap", "lastHour", "most", "percent", "windowHours", "count", "requestBytes", "kills", "missed", "lost",
	"exitsLost", "version", "weight", "restarts", "replacementsReturnedTotal", "windowSeconds", "journalRecords", "kubernetesEvents", "kernelLogRecords", "pid", "gracePeriodSeconds",
	"acted", "crossed", "ended", "notJudged", "wouldEvict", "open", "domainLimitBytes", "limitBytes", "capacityBytes", "allocatableBytes"}

// exactAtRest are those that the files of a node at rest determine.
var exactAtRest = []string{"marginBytes", "availableBytes", "usageBytes", "workingSetBytes", "releaseBytes", "survivesBytes", "growthBytesPerSecond", "slopeBytesPerSecond", "cacheSlopeBytesPerSecond",
	"bytesPerSecond", "ratio", "repeats", "wakes", "wakesPassedOver", "readErrors", "writeErrors", "recordsDropped", "backBytes", "calls", "cuts", "releases", "someSeconds", "fullSeconds",
	"cpuPeriods", "cpuThrottledPeriods", "cpuThrottledSeconds"}

// document masks JSON.
func (m *masks) document(data []byte) (string, error) {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return "", fmt.Errorf("parse %.100q: %w", data, err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(m.value("", v))
	return out.String(), err
}

func (m *masks) value(key string, v any) any {
	switch v := v.(type) {
	case string:
		if key == "message_id" {
			return v
		}
		return m.text(v)
	case float64:
		if slices.Contains(exact, key) || m.calm && slices.Contains(exactAtRest, key) {
			return v
		}
		return "#"
	case []any:
		if key == "memoryStalls" {
			v = slices.DeleteFunc(v, func(x any) bool { return x.(map[string]any)["windowSeconds"] != 10.0 })
		}
		for i := range v {
			v[i] = m.value(key, v[i])
		}
		return v
	case map[string]any:
		for k, x := range v {
			v[k] = m.value(k, x)
		}
		m.host(key, v)
	}
	return v
}

// host masks what depends on the machine and the moment beyond figures.
func (m *masks) host(key string, v map[string]any) {
	name, _ := v["name"].(string)
	switch {
	case key == "rungs" && name == "bpf":
		delete(v, "remedy")
	case key == "preflight" && name == "own-memory":
		v["state"], v["detail"] = "$HOST", "$HOST"
		delete(v, "means")
		delete(v, "fix")
	case key == "preflight" && name == "oom-tracer": // also of how far the agent has come when it looks
		v["detail"], v["means"], v["fix"] = "$HOST", "$HOST", "$HOST"
	case key == "sources" && name == "loop":
		v["state"], v["detail"] = "$HOST", "$HOST"
	}
	if !m.calm {
		delete(v, "waits")
	}
}

var (
	comment = regexp.MustCompile(`^# (?:HELP|TYPE) (\w+)`)
	series  = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
	// Series whose value a story determines: states and counts of what happened.
	told = regexp.MustCompile(`^spillway_(level|mode|paused|source_up|preflight_state|oom_rung|eviction_forbidden|evictions_.*|decisions_total|eviction_state_transitions_total|would_evictions_judged_total|` +
		`reclaims_total|brake.*|replacement.*|container.*|incidents.*|config.*|oom_kills.*|oom_events.*|pod_rank|node_threshold_bytes|.*_dropped_total|kernel_log_records_lost_total|` +
		`eviction_request_latency_seconds_count|build_info|runtime_hung|lead_time_measures)$`)
	// Further ones that the files of a node at rest determine.
	toldAtRest = regexp.MustCompile(`^spillway_(node_(margin_bytes|available_bytes|.*slope.*|.*growth.*|.*stall.*)|pod_(working_set_bytes|growth.*|cpu.*|pressure.*)|read_errors_total|sampling_wakes.*)$`)
)

// metrics masks an answer of /metrics. Series of the Go runtime and the process are the library's.
func (m *masks) metrics(s string) (string, error) {
	var out strings.Builder
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\n")
		if c := comment.FindStringSubmatch(line); c != nil {
			if m.shown(c[1]) {
				fmt.Fprintln(&out, line)
			}
			continue
		}
		x := series.FindStringSubmatch(line)
		switch {
		case x == nil:
			return "", fmt.Errorf("line of /metrics is no series: %q", line)
		case !m.shown(x[1]), x[1] == "spillway_node_memory_stall_ratio" && !strings.Contains(x[2], `window="10s"`):
			continue
		}
		value := "#"
		if (told.MatchString(x[1]) || m.calm && toldAtRest.MatchString(x[1])) && !strings.Contains(x[2], `check="own-memory"`) && !strings.Contains(x[2], `source="loop"`) {
			value = x[3]
		}
		fmt.Fprintf(&out, "%s{%s} %s\n", x[1], m.names.Replace(x[2]), value)
	}
	return out.String(), nil
}

func (m *masks) shown(name string) bool {
	return strings.HasPrefix(name, "spillway_") && (m.calm || !strings.HasPrefix(name, "spillway_pod_cpu_") && !strings.HasPrefix(name, "spillway_pod_pressure_"))
}

// log masks the agent's log, JSON lines, and sorts it: goroutines speak in any order. Equal lines are one. Of each source the last
// state counts: how many it goes through at the start depends on who is first.
func (m *masks) log(data []byte) (string, error) {
	var lines []string
	sources := map[string]string{}
	for raw := range bytes.Lines(data) {
		l, err := parseLine(raw)
		if err != nil {
			return "", fmt.Errorf("line of the log %q: %w", raw, err)
		}
		msg, source := l.text("msg"), l.text("source")
		switch {
		case msg == "the agent itself was late", source == "loop", strings.HasPrefix(msg, "preflight: own-memory"):
			continue // as busy and as privileged as the machine is
		case strings.HasPrefix(msg, "preflight: oom-tracer"):
			l.hide("$HOST", "detail", "means", "fix")
		case source == "wake-up":
			l.hide("#", "detail") // whether the cgroups are known yet; status has it
		case msg == "level changed" && l.text("from") == "unknown":
			l.hide("#", "signal", "cause") // whether the kubelet's thresholds are known yet
		}
		l.hide("$HOST", "remedy_bpf")
		l.hide("$TIME", "time")
		var line strings.Builder
		for i, f := range l {
			text, err := json.Marshal(m.value(f.key, f.value))
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&line, "%s%s=%s", strings.Repeat(" ", min(i, 1)), f.key, text)
		}
		if strings.HasPrefix(msg, "source is ") {
			sources[source] = line.String()
			continue
		}
		lines = append(lines, line.String())
	}
	for _, line := range sources {
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n") + "\n", nil
}

// logLine are the fields of one line in their order; a key may be there twice.
type logLine []field

type field struct {
	key   string
	value any
}

func parseLine(raw []byte) (logLine, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	var out logLine
	_, err := dec.Token()
	for err == nil && dec.More() {
		var key json.Token
		var v any
		if key, err = dec.Token(); err == nil {
			err = dec.Decode(&v)
		}
		name, _ := key.(string)
		out = append(out, field{name, v})
	}
	return out, err
}

// text is the first string of a key, "" where there is none.
func (l logLine) text(key string) string {
	for _, f := range l {
		if s, ok := f.value.(string); ok && f.key == key {
			return s
		}
	}
	return ""
}

func (l logLine) hide(as string, keys ...string) {
	for i := range l {
		if slices.Contains(keys, l[i].key) {
			l[i].value = as
		}
	}
}

// kubernetes masks the Events that were posted, a line each, sorted.
func (m *masks) kubernetes(events []*corev1.Event) string {
	var lines []string
	for _, e := range events {
		line := fmt.Sprintf("%s %s %s on %s", e.Type, e.Reason, e.Action, object(&e.InvolvedObject))
		if e.Related != nil {
			line += " related to " + object(e.Related)
		}
		lines = append(lines, m.text(fmt.Sprintf("%s in %s by %s of %s, source %s of %s: %s", line, e.Namespace, e.ReportingController, e.ReportingInstance, e.Source.Component, e.Source.Host, e.Message)))
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n")
}

func object(o *corev1.ObjectReference) string {
	return fmt.Sprintf("%s %s %s/%s (%s)", o.APIVersion, o.Kind, o.Namespace, o.Name, o.UID)
}

// asked masks the Evictions that were asked for.
func (m *masks) asked(evictions []*policyv1.Eviction) (string, error) {
	data, err := json.Marshal(evictions)
	if err != nil {
		return "", err
	}
	return m.document(data)
}

// Package golden runs the real binary on a node of plain files, with a fake API server and kubelet, through short stories, and
// compares all that it shows with the files in testdata: status, metrics, log, explanations, events, the story of an incident,
// Kubernetes Events, and the Evictions that it asks for. Moments, figures and names of the run are masked; names, labels,
// states, structure and reasons are not. go test ./test/golden -update rewrites the files, once two runs agree.
package golden

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/status"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// tries is how often a story is told until it is as expected: a machine may stand still for a second in the middle of one, and
// the agent then rightly says other things. Told twice in the same other way, it is the agent that has changed.
const tries = 3

// story is what happens on a node.
type story struct {
	name      string
	mode      string
	configz   string // of the kubelet; empty: its file is read
	protected bool   // leaky may not be evicted
	calm      bool   // what is read every 15 s is waited for
	play      func(*run) error
}

const configz = `{"kubeletconfig":{"evictionHard":{"memory.available":"500Mi"},"evictionSoft":{"memory.available":"700Mi"},"evictionSoftGracePeriod":{"memory.available":"1m30s"},"enforceNodeAllocatable":["pods"]}}`

var stories = []story{
	{name: "calm", mode: "observe", configz: configz, calm: true, play: calm},
	{name: "evicted", mode: "enforce", configz: configz, play: evicted},
	{name: "observed", mode: "observe", play: observed},
	{name: "protected", mode: "enforce", configz: configz, protected: true, play: protected},
	{name: "killed", mode: "observe", configz: configz, play: killed},
}

func TestMain(m *testing.M) {
	flag.Parse()
	err := flag.Set("test.parallel", strconv.Itoa(len(stories))) // they wait more than they work
	if err == nil {
		builds, err = os.MkdirTemp("", "golden")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(builds)
	os.Exit(code)
}

func TestGolden(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary and runs it for half a minute")
	}
	if _, err := build(); err != nil {
		t.Fatal(err)
	}
	for i := range stories {
		t.Run(stories[i].name, func(t *testing.T) {
			t.Parallel()
			if *update {
				rewrite(t, &stories[i])
				return
			}
			want, err := read(stories[i].name)
			if err != nil {
				t.Fatal(err)
			}
			var failed []string
			var before map[string]string
			for range tries {
				got, err := tell(t, &stories[i])
				diff := compare(want, got)
				if err == nil && diff == "" {
					for _, f := range failed {
						t.Log(f) // the machine's doing
					}
					return
				}
				if err != nil {
					failed = append(failed, err.Error())
					continue
				}
				if before != nil && compare(before, got) == "" {
					break // it is steady: the agent's doing
				}
				failed, before = append(failed, "differs from testdata (- testdata, + now; -update rewrites it):\n"+diff), got
			}
			t.Error(strings.Join(failed, "\n"))
		})
	}
}

// compare names the lines that only one side has, file by file; "" when all are alike.
func compare(want, got map[string]string) string {
	names := maps.Clone(want)
	maps.Copy(names, got)
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if want[name] == got[name] {
			continue
		}
		gone, added := less(want[name], got[name]), less(got[name], want[name])
		if len(gone)+len(added) == 0 {
			added = []string{"the same lines in another order"}
		}
		fmt.Fprintf(&out, "%s\n", name)
		for _, line := range gone {
			fmt.Fprintf(&out, "  - %s\n", line)
		}
		for _, line := range added {
			fmt.Fprintf(&out, "  + %s\n", line)
		}
	}
	return out.String()
}

// less are the lines of a that b has not, or not as often.
func less(a, b string) []string {
	left := map[string]int{}
	for line := range strings.SplitSeq(b, "\n") {
		left[line]++
	}
	var out []string
	for line := range strings.SplitSeq(a, "\n") {
		if left[line]--; left[line] < 0 {
			out = append(out, line)
		}
	}
	return out
}

// tell plays a story once and returns what was shown, masked, by file.
func tell(t *testing.T, s *story) (map[string]string, error) {
	r, err := start(t, s)
	if err != nil {
		return nil, err
	}
	err = r.await("ready", ready)
	if err == nil {
		err = s.play(r)
	}
	if err == nil {
		err = r.show()
	}
	if err := errors.Join(err, r.stop()); err != nil {
		return nil, err
	}
	return r.masked()
}

func read(name string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join("testdata", name, "*"))
	out := map[string]string{}
	for _, f := range files {
		text, rerr := os.ReadFile(f)
		out[filepath.Base(f)], err = string(text), errors.Join(err, rerr)
	}
	return out, err
}

// rewrite writes the files of a story, if it is told alike twice.
func rewrite(t *testing.T, s *story) {
	first, err := tell(t, s)
	if err != nil {
		t.Fatal(err)
	}
	second, err := tell(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := compare(first, second); diff != "" {
		t.Fatalf("two runs differ:\n%s", diff)
	}
	dir := filepath.Join("testdata", s.name)
	err = errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755))
	for _, name := range slices.Sorted(maps.Keys(first)) {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(first[name]), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// calm is a node at rest.
func calm(r *run) error {
	return r.await("at rest", func(s *status.Status) bool {
		return full(s) && !slices.ContainsFunc(s.Pods, func(p status.Pod) bool { return p.Waits == nil })
	})
}

// evicted is a leak that ends with an eviction: the pod gets its grace period, exits, and another takes its place elsewhere. The
// answer waits until the agent has decided once more, so that each run has the same decisions.
func evicted(r *run) error {
	answered := make(chan error, 1)
	r.api.AnswerEvictions(func(*policyv1.Eviction) int {
		answered <- r.await("content with the eviction", decided("no-need"))
		r.api.Put(r.replacement())
		return http.StatusCreated
	})
	stop := r.node.grow(&leaky)
	err := r.await("told that the eviction is accepted", func(s *status.Status) bool {
		return len(s.Evictions.Outcomes) == 1 && s.Evictions.Outcomes[0].State == "in-flight"
	})
	leaving := r.object(&leaky)
	if err == nil {
		grace, end := int64(15), metav1.NewTime(time.Now().Add(15*time.Second))
		leaving.DeletionTimestamp, leaving.DeletionGracePeriodSeconds = &end, &grace
		r.api.Put(leaving)
		err = errors.Join(<-answered, r.await("told that the pod is terminating", func(s *status.Status) bool {
			return slices.ContainsFunc(s.Pods, func(p status.Pod) bool { return p.Name == leaky.name && p.Protection == "terminating" })
		}), r.explainLeak())
	}
	stop()
	if err != nil {
		return err
	}
	r.node.remove(&leaky)
	r.api.Delete(leaving)
	return r.await("after the eviction", func(s *status.Status) bool {
		e := &s.Evictions
		return past(s) && len(s.Pods) == 2 && len(e.Outcomes) == 1 && e.Outcomes[0].State == "released" && len(e.Replacements) == 1 && e.Replacements[0].State == "running" && len(s.Incidents) == 1
	})
}

// replacement is the pod that the ReplicaSet makes in the place of leaky, on another node.
func (r *run) replacement() *corev1.Pod {
	p := r.object(&leaky)
	p.Name, p.UID, p.Spec.NodeName = "leaky-again", "uid-of-leaky-again", nodeName+"-b"
	now := metav1.Now()
	p.CreationTimestamp, p.Status.StartTime = now, &now
	p.Status.Conditions[0].LastTransitionTime = now
	return p
}

// observed is the same leak in observe mode: a dry run is asked for, and the pod stays. Then it gives its memory back.
func observed(r *run) error {
	held := make(chan error, 1)
	r.api.AnswerEvictions(func(*policyv1.Eviction) int {
		held <- r.await("waiting for the answer", decided("held"))
		return http.StatusCreated
	})
	return r.leak("waiting after its cooldown", func(s *status.Status) bool {
		return decided("held")(s) && len(s.Evictions.Outcomes) == 1 && s.Evictions.Outcomes[0].State == "would-evict"
	}, held)
}

// protected is the same leak of a pod that may not be evicted: no other is in its place.
func protected(r *run) error { return r.leak("standing by", decided("stand-by"), nil) }

// leak has leaky grow until the agent has come to a state, explains it, and has it shrink again.
func (r *run) leak(what string, ok func(*status.Status) bool, then <-chan error) error {
	stop := r.node.grow(&leaky)
	err := r.await(what, ok)
	if err == nil && then != nil {
		err = <-then
	}
	if err == nil {
		err = r.explainLeak()
	}
	stop()
	r.node.shrink(&leaky)
	if err != nil {
		return err
	}
	return r.await("after the leak", past)
}

// killed is an OOM kill in a container at its limit, which nothing but the kernel's counters tells of; the kubelet then says that
// the container has ended and runs again.
func killed(r *run) error {
	r.node.kills(1, &cart)
	if err := r.await("aware of the kill", func(s *status.Status) bool { return len(s.OOMKills) == 1 }); err != nil {
		return err
	}
	again := r.object(&cart)
	c := &again.Status.ContainerStatuses[0]
	c.RestartCount = 1
	c.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", StartedAt: *again.Status.StartTime, FinishedAt: metav1.Now(), ContainerID: c.ContainerID}
	r.api.Put(again)
	return r.await("aware of the exit", func(s *status.Status) bool { return full(s) && len(s.Exits) == 1 && len(s.Incidents) == 1 })
}

package score

import (
	"fmt"
	"slices"
	"time"

	"spillway/agent/status"
)

// When a would-be eviction is judged.
const (
	Gap     = 20 * time.Second // without a reading for longer, no verdict is given: the kubelet looks every 10 s
	Quiet   = 3 * time.Minute  // of no growth and a level under evict, until the growth counts as ended
	Longest = 15 * time.Minute // a crossing later than that was not what the eviction was for
	settle  = time.Minute      // of a level under evict, until no more is noted of one that was judged
	lateEnd = 3 * time.Second  // the kubelet's word of its eviction may come so long after the pod's end
)

// Bounds of what is kept.
const (
	Days       = 7 // that are counted
	mostOpen   = 16
	keepJudged = 32
	mostTaken  = 4
	bucket     = time.Hour
)

// leastRise is less than what counts as growth: the kernel charges in batches. A slow leak goes by smaller steps.
const (
	leastRise = 16 << 20
	leastStep = 4 << 20
	lastRise  = 30 * time.Second // a crossing so long after the pod's last step is not the pod's
	leastFall = 16 << 20         // of a margin that was below 0 before, to count as a crossing
)

// Named is a pod that would have been evicted.
type Named struct {
	Decision            string
	Namespace, Pod, UID string
	At                  time.Duration // since boot
	Wall                time.Time
	Held                uint64 // memory of the pod, without page cache unless Cache
	Gained              uint64 // of Held, in the minute before
	Cache               bool   // it is named for its page cache
	Margin              int64  // as in Facts
	Readable            int
}

// Life is what is known of a pod's existence.
type Life uint8

// The lives of a pod.
const (
	NotKnown Life = iota // the view of the pods is not current
	Here
	Ended   // by itself: its containers have ended and are not restarted
	Deleted // or on its way out
)

// Pod is a reading of a pod.
type Pod struct {
	Life  Life
	Fresh bool   // Held and Cache are of now
	Held  uint64 // without page cache
	Cache uint64
}

// Facts are what is seen at one moment.
type Facts struct {
	At        time.Duration // since boot, of the newest reading of the node
	Wall      time.Time
	Margin    int64  // the smallest to a hard threshold, of all readings since the last facts
	Signal    string // of Margin
	Readable  int    // hard thresholds that could be read; 0: Margin means nothing
	UnderMark bool   // the level is under evict
	Pod       func(uid string) Pod
}

// Act is what the kubelet or the kernel did for lack of memory.
type Act struct {
	By       string // kubelet, kernel
	Pod, UID string // namespace/name; of what is no pod the cgroup
	Wall     time.Time
	Other    string // the reason, where it was not the memory of node or kubepods
}

// entry is one would-be eviction that waits, or whose end is still looked at.
type entry struct {
	status.WouldEvict
	Named     time.Duration `json:"namedAt"` // since boot
	Judged    time.Duration `json:"judgedBoot,omitempty"`
	Node      time.Duration `json:"nodeAt"` // of the newest reading of the node
	Read      time.Duration `json:"podAt"`  // likewise of the pod
	Quiet     time.Duration `json:"quietSince"`
	Gone      time.Duration `json:"goneSince,omitempty"` // 0: it is not
	Readable  int           `json:"readable"`            // thresholds that are expected to be read; 0: not known yet
	Base      uint64        `json:"base"`                // what it held before it rose
	Top       uint64        `json:"top"`
	Held      uint64        `json:"held"`
	Step      uint64        `json:"step"`             // the highest, in smaller steps than Top
	StepAt    time.Duration `json:"stepAt"`           // since when
	Before    *int64        `json:"before,omitempty"` // the margin when it was named, or the last that was not below 0
	Cache     bool          `json:"cache,omitempty"`
	Over      bool          `json:"over,omitempty"`  // the pod ended by itself
	Same      bool          `json:"same,omitempty"`  // the pod was taken
	OtherPods bool          `json:"other,omitempty"` // a pod was taken that would not have been evicted
}

// hour is what was counted within one of the score's own hours.
type hour struct {
	N         int64 `json:"n"`
	Crossed   int   `json:"crossed,omitempty"`
	Acted     int   `json:"acted,omitempty"`
	Ended     int   `json:"ended,omitempty"`
	NotJudged int   `json:"notJudged,omitempty"`
	Same      int   `json:"same,omitempty"`
	Other     int   `json:"other,omitempty"`
}

// Score keeps the would-be evictions of one node. The zero value has seen nothing. It is for one goroutine.
type Score struct {
	clock   time.Duration // of its own: that of the samples, and the time between two boots
	at      time.Duration // since boot, of the newest facts; 0: none of this boot
	open    []*entry      // oldest first
	judged  []status.WouldEvict
	hours   []hour // oldest first, none without a count
	changed bool
}

// Waiting reports whether facts have to be looked at: a would-be eviction waits, or its end is still looked at.
func (s *Score) Waiting() bool { return len(s.open) > 0 }

// Changed reports whether something has happened since the last Save.
func (s *Score) Changed() bool { return s.changed }

// Name takes in a pod that would be evicted now. One that is too many is returned as not judged.
func (s *Score) Name(n Named) []status.WouldEvict {
	s.changed = true
	for _, e := range s.open {
		if e.UID == n.UID {
			e.Repeats++
			return nil
		}
	}
	s.advance(n.At)
	e := &entry{
		WouldEvict: status.WouldEvict{At: n.Wall.UTC(), DecisionID: n.Decision, Namespace: n.Namespace, Pod: n.Pod, UID: n.UID},
		Named:      n.At, Node: n.At, Read: n.At, Quiet: n.At, Base: n.Held - min(n.Gained, n.Held), Top: n.Held, Held: n.Held, Cache: n.Cache,
		Step: n.Held, StepAt: n.At,
	}
	if n.Readable > 0 {
		e.Before = &n.Margin
	}
	s.open = append(s.open, e)
	if len(s.open) <= mostOpen {
		return nil
	}
	s.judge(e, n.At, n.Wall, status.VerdictNotJudged, fmt.Sprintf("%d others waited", mostOpen))
	s.drop()
	return []status.WouldEvict{e.WouldEvict}
}

// Act takes in what the kubelet or the kernel did, and returns what was judged by it.
func (s *Score) Act(a Act) (out []status.WouldEvict) {
	named := slices.ContainsFunc(s.open, func(e *entry) bool { return e.UID == a.UID && a.UID != "" })
	for _, e := range s.open {
		same := e.UID == a.UID && a.UID != ""
		switch {
		case a.Other != "" && (!same || e.Verdict != ""):
			continue
		case a.Other != "":
			s.judge(e, s.at, a.Wall, status.VerdictNotJudged, a.Other)
			out = append(out, e.WouldEvict)
			continue
		case e.Verdict == status.VerdictNotJudged || e.Verdict == status.VerdictEnded:
			continue
		}
		s.changed = true
		if e.Verdict == "" && !same && e.over(s.at) {
			s.judge(e, s.at, a.Wall, status.VerdictNotJudged, "the "+a.By+" acted on "+a.Pod+" after the growth of this pod had ended: "+e.fall(s.at))
			out = append(out, e.WouldEvict)
			continue
		}
		e.Same = e.Same || same
		e.OtherPods = e.OtherPods || !named
		if len(e.Taken) < mostTaken && !slices.ContainsFunc(e.Taken, func(t status.Taken) bool { return t.By == a.By && t.Pod == a.Pod && t.UID == a.UID }) {
			e.Taken = append(e.Taken, status.Taken{By: a.By, Pod: a.Pod, UID: a.UID, Same: same})
		}
		if e.Verdict == "" {
			s.judge(e, s.at, a.Wall, status.VerdictActed, fmt.Sprintf("the %s acted %.0f s later", a.By, (s.at-e.Named).Seconds()))
			out = append(out, e.WouldEvict)
		}
	}
	s.drop()
	return out
}

// Withdraw forgets a pod that waits: its eviction would have been refused.
func (s *Score) Withdraw(uid string) {
	s.open = slices.DeleteFunc(s.open, func(e *entry) bool { return e.UID == uid && e.Verdict == "" })
	s.changed = true
}

// Void ends the wait of all as not judged: the future is another one now, or it is not seen. No more is noted of the others.
func (s *Score) Void(wall time.Time, why string) (out []status.WouldEvict) {
	for _, e := range s.open {
		if e.Verdict == "" {
			s.judge(e, s.at, wall, status.VerdictNotJudged, why)
			out = append(out, e.WouldEvict)
		}
	}
	s.close(func(*entry) bool { return true })
	return out
}

// Calm ends the wait of all as ended, where the last that is seen is a calm node: the end of a recording.
func (s *Score) Calm(wall time.Time) (out []status.WouldEvict) {
	for _, e := range s.open {
		if e.Verdict == "" {
			s.judge(e, s.at, wall, status.VerdictEnded, "the level was calm again "+e.after(s.at)+" later")
			out = append(out, e.WouldEvict)
		}
	}
	s.close(func(*entry) bool { return true })
	return out
}

// Step takes in what is seen now, and returns what was judged by it.
func (s *Score) Step(f Facts) (out []status.WouldEvict) {
	if s.at > 0 && f.At < s.at { // another clock: no span can be told
		s.at = f.At
		return s.Void(f.Wall, "the clock of the readings went back")
	}
	if f.At == s.at && s.at > 0 {
		return nil // nothing new was read
	}
	s.advance(f.At)
	for _, e := range s.open {
		if e.Verdict == "" {
			if s.step(e, &f); e.Verdict != "" {
				out = append(out, e.WouldEvict)
			}
		} else if !f.UnderMark {
			e.Quiet = f.At
		}
	}
	s.drop()
	return out
}

// step judges e, or leaves it as it is.
func (s *Score) step(e *entry, f *Facts) {
	if gap := f.At - e.Node; gap > Gap {
		s.judge(e, f.At, f.Wall, status.VerdictNotJudged, fmt.Sprintf("the node's margin could not be read for %.0f s", gap.Seconds()))
		return
	}
	if e.Readable == 0 {
		e.Readable = f.Readable
	}
	if f.Readable == 0 || f.Readable < e.Readable {
		return // a threshold that cannot be read may be the one that is crossed
	}
	e.Node = f.At
	if low := f.Margin; e.LowestMargin == nil || low < *e.LowestMargin {
		e.LowestMargin = &low
	}
	if margin := f.Margin; e.Before == nil || margin >= 0 {
		e.Before = &margin
	}
	if s.look(e, f); e.Verdict != "" {
		return
	}
	// A margin that was below 0 before the pod was named says nothing of the pod until it falls on.
	crossed := f.Margin < 0 && (*e.Before >= 0 || f.Margin <= *e.Before-leastFall)
	after := e.after(f.At)
	switch {
	case f.At-e.Named > Longest && f.Margin < 0 && !crossed:
		s.judge(e, f.At, f.Wall, status.VerdictNotJudged, fmt.Sprintf("the threshold had been crossed before the pod was named, and for %.0f min nothing came of it", Longest.Minutes()))
	case f.At-e.Named > Longest:
		s.judge(e, f.At, f.Wall, status.VerdictEnded, fmt.Sprintf("the threshold was not crossed within %.0f min", Longest.Minutes()))
	case crossed && e.over(f.At):
		s.judge(e, f.At, f.Wall, status.VerdictNotJudged, "the threshold was crossed by other growth: "+e.fall(f.At))
	case crossed:
		s.judge(e, f.At, f.Wall, status.VerdictCrossed, fmt.Sprintf("%s crossed its threshold %s later", f.Signal, after))
	case !f.UnderMark && !e.Over:
		e.Quiet = f.At
	case f.At-e.Quiet >= Quiet:
		s.judge(e, f.At, f.Wall, status.VerdictEnded, "the growth ended by itself: "+e.end())
	}
}

// look takes in what is seen of the pod.
func (s *Score) look(e *entry, f *Facts) {
	if e.Over {
		return
	}
	p := f.Pod(e.UID)
	switch p.Life {
	case Ended:
		e.Over, e.Held, e.Quiet, s.changed = true, 0, f.At, true
		return
	case Deleted:
		if e.Gone == 0 {
			e.Gone = f.At
		}
		if f.At-e.Gone >= lateEnd {
			s.judge(e, f.At, f.Wall, status.VerdictNotJudged, "the pod was deleted before it could be judged")
		}
		return
	}
	if p.Fresh {
		e.Read, e.Held = f.At, p.Held
		if e.Cache {
			e.Held += p.Cache
		}
		if e.Held >= e.Top+leastRise {
			e.Top, e.Quiet = e.Held, f.At
		}
		if e.Held >= e.Step+leastStep {
			e.Step, e.StepAt = e.Held, f.At
		}
	}
	if gap := f.At - e.Read; gap > Gap {
		s.judge(e, f.At, f.Wall, status.VerdictNotJudged, fmt.Sprintf("the pod's memory could not be read for %.0f s", gap.Seconds()))
	}
}

// fallen reports whether the pod came back from its rise, as far as it was last read.
func (e *entry) fallen() bool {
	rise := e.Top - min(e.Base, e.Top)
	return e.Over || rise >= leastRise && e.Held < e.Top-rise/2
}

// over reports whether the pod's growth had ended: what comes now is not of it.
func (e *entry) over(at time.Duration) bool { return e.fallen() || at-e.StepAt > lastRise }

// fall says how.
func (e *entry) fall(at time.Duration) string {
	switch {
	case e.Over:
		return "the pod had ended by itself"
	case !e.fallen():
		return fmt.Sprintf("the pod had not grown for %.0f s", (at - e.StepAt).Seconds())
	}
	return fmt.Sprintf("the pod had fallen from %s to %s", status.Size(float64(e.Top)), status.Size(float64(e.Held)))
}

// end says how the growth ended.
func (e *entry) end() string {
	switch {
	case e.Over:
		return "the pod ended"
	case e.fallen():
		return fmt.Sprintf("the pod fell from %s to %s", status.Size(float64(e.Top)), status.Size(float64(e.Held)))
	}
	return fmt.Sprintf("the pod stopped at %s", status.Size(float64(e.Held)))
}

func (e *entry) after(at time.Duration) string {
	return fmt.Sprintf("%.0f s", max(0, at-e.Named).Seconds())
}

// judge gives e its verdict, and counts it.
func (s *Score) judge(e *entry, at time.Duration, wall time.Time, verdict, why string) {
	wall = wall.UTC()
	e.Verdict, e.Why, e.JudgedAt, e.Judged, e.Quiet = verdict, why, &wall, at, at
	h := s.hour()
	switch verdict {
	case status.VerdictCrossed:
		h.Crossed++
	case status.VerdictActed:
		h.Acted++
	case status.VerdictEnded:
		h.Ended++
	default:
		h.NotJudged++
	}
	s.changed = true
}

// drop moves what is done with to the list.
func (s *Score) drop() {
	s.close(func(e *entry) bool {
		switch e.Verdict {
		case "":
			return false
		case status.VerdictEnded, status.VerdictNotJudged:
			return true
		}
		return s.at-e.Quiet >= settle || s.at-e.Judged > Longest
	})
}

// close moves those with a verdict of which done says so to the list.
func (s *Score) close(done func(*entry) bool) {
	s.open = slices.DeleteFunc(s.open, func(e *entry) bool {
		if !done(e) {
			return false
		}
		if e.Same {
			s.hour().Same++
		}
		if e.OtherPods {
			s.hour().Other++
		}
		s.judged = append(s.judged, e.WouldEvict)
		s.changed = true
		return true
	})
	s.judged = slices.Delete(s.judged, 0, max(0, len(s.judged)-keepJudged))
}

// advance moves the score's own clock on with that of the readings.
func (s *Score) advance(at time.Duration) {
	if s.at > 0 && at > s.at {
		s.clock += at - s.at
	}
	s.at = max(s.at, at)
	s.forget()
}

// forget drops the hours that are no longer counted.
func (s *Score) forget() {
	oldest := int64((s.clock - Days*24*time.Hour) / bucket)
	s.hours = slices.DeleteFunc(s.hours, func(h hour) bool { return h.N < oldest })
}

// hour returns the present one.
func (s *Score) hour() *hour {
	n := int64(s.clock / bucket)
	if k := len(s.hours); k == 0 || s.hours[k-1].N != n {
		s.hours = append(s.hours, hour{N: n})
	}
	return &s.hours[len(s.hours)-1]
}

// Summary is what there is to show.
func (s *Score) Summary() *status.Observe {
	o := &status.Observe{Days: Days, Newest: []status.WouldEvict{}}
	for i := range s.hours {
		h := &s.hours[i]
		o.Crossed, o.Acted, o.Ended, o.NotJudged = o.Crossed+h.Crossed, o.Acted+h.Acted, o.Ended+h.Ended, o.NotJudged+h.NotJudged
		o.SamePod, o.OtherPod = o.SamePod+h.Same, o.OtherPod+h.Other
	}
	o.WouldEvict = o.Crossed + o.Acted + o.Ended + o.NotJudged
	for _, e := range slices.Backward(s.open) {
		if e.Verdict == "" {
			o.Open++
		}
		if e.Same {
			o.SamePod++
		}
		if e.OtherPods {
			o.OtherPod++
		}
		w := e.WouldEvict
		w.Taken = slices.Clone(w.Taken)
		o.Newest = append(o.Newest, w)
	}
	for _, w := range slices.Backward(s.judged) {
		o.Newest = append(o.Newest, w)
	}
	slices.SortStableFunc(o.Newest, func(a, b status.WouldEvict) int { return b.At.Compare(a.At) })
	return o
}

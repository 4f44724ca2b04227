package policy

import (
	"math"
	"strings"
	"testing"
	"time"
)

func lasts(d time.Duration) func(*Candidate) { return func(c *Candidate) { c.Reading.Lasted = d } }

func restarted(ago time.Duration) func(*Candidate) {
	return func(c *Candidate) {
		c.Pod.Containers = []Container{{Name: "old", Running: true, StartedAt: testNow.Add(-47 * time.Hour)}, {Name: "new", Running: true, StartedAt: testNow.Add(-ago)}}
	}
}

// What a pod takes right after its start is no leak yet; what is more than that, or lasts longer, is.
func TestStarts(t *testing.T) {
	near := Need{ByETA: true, Margin: 600 * testMiB, Slope: 100 * testMiB, Horizon: 93 * time.Second}
	far := Need{ByETA: true, Margin: 2000 * testMiB, Slope: 100 * testMiB, Horizon: 93 * time.Second}
	of100 := func(in *Input) { in.NodeGrowth = 100 * testMiB }
	for _, tc := range []struct {
		name   string
		need   Need
		change []func(*Candidate)
		input  func(*Input)
		want   string // protection
		reason string
	}{
		{"started 5 s ago", far, []func(*Candidate){age(5 * time.Second), size(300)}, nil, ProtectStarting, "started 5 s ago and holds 300 MiB: up to 512 MiB"},
		{"a minute ago", far, []func(*Candidate){age(time.Minute), size(300)}, nil, "", ""},
		{"holds more than a start takes", far, []func(*Candidate){age(5 * time.Second), size(512)}, nil, "", ""},
		{"page cache is none of it", far, []func(*Candidate){age(5 * time.Second), size(600), func(c *Candidate) { c.Reading.ActiveFile = 300 * testMiB }}, nil, ProtectStarting, "holds 300 MiB"},
		{"its request is larger", far, []func(*Candidate){age(5 * time.Second), size(800), request(1000)}, nil, ProtectStarting, "up to 1000 MiB"},
		{"half of what is left is smaller", near, []func(*Candidate){age(5 * time.Second), size(299)}, nil, ProtectStarting, "up to 300 MiB"},
		{"and it holds that", near, []func(*Candidate){age(5 * time.Second), size(300)}, nil, "", ""},
		{"a container of an old pod started again", far, []func(*Candidate){restarted(5 * time.Second)}, nil, ProtectStarting, "started 5 s ago"},
		{"longer ago", far, []func(*Candidate){restarted(time.Hour)}, nil, "", ""},
		{"nothing of it runs yet", far, []func(*Candidate){func(c *Candidate) { c.Pod.Containers = []Container{{Name: "main"}} }}, nil, ProtectStarting, "is about to start"},
		{"the clock went back", far, []func(*Candidate){age(-time.Hour)}, nil, ProtectStarting, "started 0 s ago"},
		{"in the last moment it is not waited for", far, []func(*Candidate){age(5 * time.Second)}, func(in *Input) { in.Critical, in.Left = true, 1900*time.Millisecond }, "", ""},
		{"at critical there may be time", far, []func(*Candidate){age(5 * time.Second)}, func(in *Input) { in.Critical, in.Left = true, 3*time.Second }, ProtectStarting, ""},
		{"not where a threshold is met", far, []func(*Candidate){age(5 * time.Second)}, func(in *Input) { in.Met = true }, "", ""},
		{"nor in maintenance", far, []func(*Candidate){age(5 * time.Second)}, func(in *Input) { in.Maintenance = true }, "", ""},
		{"the owner of the page cache that is the shortage", far, []func(*Candidate){age(5 * time.Second)}, func(in *Input) { in.CacheOwner = "uid-it" }, "", ""},
		{"its growth is a trifle", far, []func(*Candidate){age(5 * time.Second), grows(1.9), lasts(time.Second)}, of100, "", ""},
		{"more than a trifle", far, []func(*Candidate){age(5 * time.Second), grows(2)}, of100, ProtectStarting, ""},
		{"a trifle where nothing grows", far, []func(*Candidate){age(5 * time.Second), grows(0.24), lasts(time.Second)}, nil, "", ""},
		{"nobody knows how much all of the growth is", far, []func(*Candidate){age(5 * time.Second), grows(1)}, func(in *Input) { in.NodeGrowth = math.NaN() }, ProtectStarting, ""},
		{"it does not grow", far, []func(*Candidate){age(5 * time.Second), grows(0)}, nil, "", ""},

		{"grew for a fifth of what is left", far, []func(*Candidate){lasts(4 * time.Second)}, nil, "", ""},
		{"for less", far, []func(*Candidate){lasts(3900 * time.Millisecond)}, nil, ProtectBrief, "lasted for 3.9 s, with 20.0 s left it has to for 4.0 s"},
		{"never more than the window shows", Need{ByETA: true, Margin: 9000 * testMiB, Slope: 100 * testMiB, Horizon: 93 * time.Second}, []func(*Candidate){lasts(6 * time.Second)}, nil, "", ""},
		{"with victims in flight what counts is how long it lasts without them", far, []func(*Candidate){lasts(2 * time.Second)}, func(in *Input) { in.Left = 10 * time.Second }, "", ""},
		{"and how much is left without them", far, []func(*Candidate){age(5 * time.Second), size(300)}, func(in *Input) { in.LeftBytes = 500 * testMiB }, "", ""},
		{"for less, but a trifle", far, []func(*Candidate){lasts(time.Second), grows(1.9)}, of100, "", ""},
		{"it stands still again", far, []func(*Candidate){lasts(1)}, nil, ProtectBrief, "all but stood still"},
		{"nobody knows for how long", far, nil, nil, "", ""},
		{"in the last moment", far, []func(*Candidate){lasts(100 * time.Millisecond)}, func(in *Input) { in.Critical, in.Left = true, time.Second }, "", ""},
		{"a shortage by percentage has its own rule", byUsed(500), []func(*Candidate){lasts(time.Second)}, nil, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(tc.need, pod("it", append([]func(*Candidate){grows(100)}, tc.change...)...), pod("other"))
			if tc.input != nil {
				tc.input(&in)
			}
			d := Decide(in)
			c := find(d.Pods, "it")
			if c.Protection.Name != tc.want || !strings.Contains(c.Protection.Reason, tc.reason) {
				t.Errorf("protection %+v, want %q because %q", c.Protection, tc.want, tc.reason)
			}
		})
	}
}

// A large pod that does not grow is not to pay for starts that end by themselves, nor for a leak that may not go.
func TestNobodyPaysForAStart(t *testing.T) {
	need := Need{ByETA: true, Margin: 2000 * testMiB, Slope: 60 * testMiB, Horizon: 93 * time.Second}
	large := pod("large", size(6000))
	twelve := []Candidate{large}
	for _, name := range strings.Split("abcdefghijkl", "") {
		twelve = append(twelve, pod(name, grows(5), age(3*time.Second)))
	}
	for _, tc := range []struct {
		name string
		pods []Candidate
		want string
	}{
		{"a start", []Candidate{pod("start", grows(60), age(3*time.Second)), large}, ""},
		{"a brief growth", []Candidate{pod("brief", grows(60), lasts(time.Second)), large}, ""},
		{"starts that are half of it, and a leak that may not go", []Candidate{pod("start", grows(30), age(3*time.Second)), pod("leak", grows(30), annotated), large}, ""},
		{"starts that are less, and a leak that may not go", []Candidate{pod("start", grows(20), age(3*time.Second)), pod("leak", grows(40), annotated), large}, ""},
		{"a surge, of which each pod is too young", twelve, ""},
		{"the start of a pod that may not go in any case", []Candidate{pod("start", grows(60), age(3*time.Second), annotated), large}, ""},
		{"a leak beside starts", []Candidate{pod("start", grows(40), age(3*time.Second)), pod("leak", grows(20), size(3000), lasts(9*time.Second)), large}, "leak"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(input(need, tc.pods...))
			got := strings.Join(setNames(d), " ")
			if got != tc.want {
				t.Errorf("set [%s], want [%s]: %s", got, tc.want, d.Reason)
			}
			if c := find(d.Pods, "large"); tc.want == "" && c.Excluded != whyNoPart {
				t.Errorf("the large pod is left alone because %q", c.Excluded)
			}
		})
	}
}

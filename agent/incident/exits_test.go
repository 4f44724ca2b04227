package incident

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
)

// Of many containers that ended those of the incident's own pods stay, then those close to its beginning; a record is not
// filled by the words of one.
func TestEndings(t *testing.T) {
	exit := func(uid string, after time.Duration) status.Exit {
		return status.Exit{At: began.Add(after), PodUID: uid, Container: fmt.Sprint(uid, after), How: strings.Repeat("x", 2*maxTexts), Evidence: make([]string, 9)}
	}
	about := func(uid string) bool { return uid == "own" }
	all := []status.Exit{exit("own", 60*time.Second), exit("own", -90*time.Second)}
	for n := range 10 {
		all = append(all, exit("other", time.Duration(10-n)*time.Second), exit("other", time.Duration(n-10)*time.Second))
	}
	before := fmt.Sprint(all)
	got := Endings(all, began, about)
	var names []string
	for i, x := range got {
		names = append(names, x.Container)
		if len(x.How) > maxTexts+3 || len(x.Evidence) != maxProof || i > 0 && x.At.Before(got[i-1].At) {
			t.Errorf("%+v", x)
		}
	}
	if want := "[own-1m30s other-3s other-2s other-1s other1s other2s other3s own1m0s]"; fmt.Sprint(names) != want {
		t.Errorf("%v, want %s", names, want)
	}
	if fmt.Sprint(all) != before {
		t.Error("what it was called with has changed")
	}
	if got := Endings(nil, began, about); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// A record that has no room for exits still says how many there were, and one without any has no word of them.
func TestStoryOfExits(t *testing.T) {
	first, rest := someIncident(0)
	whole := Join(first, rest)
	if len(whole.Exits) != 2 || whole.MoreExits != 3 {
		t.Fatalf("%d exits and %d more after the join", len(whole.Exits), whole.MoreExits)
	}
	whole.shorter(1)
	if story := Story(whole, time.UTC); len(whole.Exits) != 1 || whole.Exits[0].Evidence != nil || rest.Exits[0].Evidence == nil || !strings.Contains(story, "and 4 more\n") {
		t.Errorf("shorter: %+v\n%s", whole.Exits, story)
	}
	whole.shorter(0)
	if story := Story(whole, time.UTC); !strings.Contains(story, "5 containers ended with a code other than 0") {
		t.Errorf("none kept:\n%s", story)
	}
	if story := Story(first, time.UTC); strings.Contains(story, "ENDED") || strings.Contains(story, "other than 0") {
		t.Errorf("none:\n%s", story)
	}
}

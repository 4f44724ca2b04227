package recording

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"

	"spillway/agent/judge"
	"spillway/agent/policy"
)

// TestClusterIsReplayed: what the API server said of a pod is in the recording once for each change, and decides the same in
// a replay.
func TestClusterIsReplayed(t *testing.T) {
	says := func(fits int) *policy.Cluster {
		return &policy.Cluster{Budget: policy.Headroom{Known: true, Count: 1, Name: "payment"}, Scaler: policy.Scaler{Why: "forbidden"},
			Room: policy.Room{Known: true, Fits: fits, Wanted: 2, Need: gib, Why: "1 too small"}}
	}
	j, e := judge.New(config()), &encoder{}
	e.start(Header{}, begin, j.State())
	read := func(c *policy.Cluster) []policy.Candidate {
		p := judge.Pods{Now: begin, Pods: []policy.Candidate{testPod("payment", 2*gib, 0), testPod("leak", gib, 100*mib)}}
		p.Pods[0].Cluster = c
		ranking := j.Read(p)
		e.read(&p, ranking)
		d := j.Decide(p)
		e.decide(&p, &d, "", "1")
		return ranking
	}
	same := says(0)
	held := read(same)
	read(same)
	read(says(0)) // another pointer to the same facts
	read(says(2))
	read(nil)
	if held[1].Protection.Name != policy.ProtectNoRoom {
		t.Fatal("the facts decide nothing")
	}
	lines, err := e.take()
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(lines, []byte(`"cluster":{`)); n != 2 {
		t.Errorf("the facts are written %d times, want once for each of two values:\n%s", n, lines)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := io.Copy(z, bytes.NewReader(lines)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Replay(packed.Bytes(), configure, nil)
	if err != nil || len(r.Episodes) != 1 || !r.Identical() || r.Episodes[0].Decisions != 5 {
		t.Fatalf("%+v, %v", r, err)
	}
	// Without them the answers are others: that is what makes the replay above mean something.
	without := bytes.ReplaceAll(lines, []byte(`"Fits":0`), []byte(`"Fits":2`))
	packed.Reset()
	z = gzip.NewWriter(&packed)
	z.Write(without)
	z.Close()
	if r, err = Replay(packed.Bytes(), configure, nil); err != nil || r.Identical() {
		t.Errorf("facts of another content replay as the same: %v", err)
	}
}

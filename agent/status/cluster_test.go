package status

import (
	"bytes"
	"strings"
	"testing"
)

// TestWhatTheClusterSays: one line for each fact in both tables, none for pods that were not asked for, and nothing of an
// object's name reaches the terminal unquoted.
func TestWhatTheClusterSays(t *testing.T) {
	lines := []string{"PDB checkout: 1 disruption allowed", "HPA web: at its minimum 2 of 10", "room: 2 of 2 needed nodes for 512 MiB"}
	var out bytes.Buffer
	s := Status{Pods: []Pod{{Namespace: "shop", Name: "web-1", Cluster: lines}, {Namespace: "shop", Name: "cart"}, {Namespace: "shop", Name: "evil", Cluster: []string{"PDB \x1b[2J: 1"}}}}
	if err := WriteTable(&out, &s, 0); err != nil {
		t.Fatal(err)
	}
	table := out.String()
	if strings.Count(table, "THE CLUSTER SAYS") != 1 || strings.Count(table, "shop/cart ") != 1 || strings.Count(table, "shop/web-1 ") != 4 {
		t.Errorf("table:\n%s", table)
	}
	out.Reset()
	if err := WriteExplanation(&out, Explanation{Pod: "shop/web-1", Cluster: append(lines, "PDB \x1b[2J: 1")}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{table, out.String()} {
		for _, line := range lines {
			if strings.Count(text, line) != 1 {
				t.Errorf("%q is not there once:\n%s", line, text)
			}
		}
		if strings.Contains(text, "\x1b") {
			t.Errorf("an escape reaches the terminal:\n%q", text)
		}
	}
	out.Reset()
	if err := WriteTable(&out, &Status{Pods: []Pod{{Name: "x"}}}, 0); err != nil || strings.Contains(out.String(), "CLUSTER SAYS") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

package pressure

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestAlertPercent(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		configured, baseline float64
		want                 float64
	}{
		{"not known", 88, 0, 88},
		{"ten points above what is usual", 88, 65, 75},
		{"hardly used: at least 70", 88, 20, 70},
		{"just where 70 begins", 88, 60, 70},
		{"just above", 88, 60.5, 70.5},
		{"usually full: never later than configured", 88, 85, 88},
		{"completely full", 88, 100, 88},
		{"configured below 70", 65, 20, 65},
		{"configured below 70, usually full", 65, 90, 65},
		{"no number", 88, math.NaN(), 88},
		{"negative", 88, -5, 88},
		{"over 100", 88, 100.1, 88},
		{"infinite", 88, math.Inf(1), 88},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Config{AlertPercent: tc.configured, BaselinePercent: tc.baseline}
			if got := c.alertPercent(); got != tc.want {
				t.Errorf("alert at %v %%, want %v %%", got, tc.want)
			}
		})
	}
}

// A flat node at 80 %: an alert where nodes usually use 65 %, and nothing where the usual use is not known.
func TestAlertByWhatIsUsual(t *testing.T) {
	margin := 0.2 * float64((capacity-hard.Bytes)/testMiB)
	for _, tc := range []struct {
		name     string
		baseline float64
		want     Level
		alertAt  float64
		reason   string
	}{
		{"not known", 0, Calm, 88, "margin"},
		{"usually 65 %", 65, Alert, 75, "used 80.0 %, alert at 75.0 % instead of 88.0 %: nodes of this cluster usually use 65.0 %"},
		{"usually 75 %", 75, Calm, 85, "margin"},
		{"no number", math.NaN(), Calm, 88, "margin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(still(time.Hour, 100, margin))
			in.Config.BaselinePercent = tc.baseline
			v, _ := Assess(in, Memory{})
			if v.Now != tc.want || v.AlertPercent != tc.alertAt || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("now %v, alert at %v %%: %s", v.Now, v.AlertPercent, v.Reason)
			}
		})
	}
	t.Run("the reason is short where nothing differs", func(t *testing.T) {
		in := input(still(time.Hour, 100, margin/2))
		in.Config.BaselinePercent = 85
		if v, _ := Assess(in, Memory{}); v.Now != Alert || v.Reason != "used 90.0 %" {
			t.Errorf("now %v: %s", v.Now, v.Reason)
		}
	})
	t.Run("known before the first sample", func(t *testing.T) {
		in := input(nil)
		in.Config.BaselinePercent = 65
		if v, _ := Assess(in, Memory{}); v.AlertPercent != 75 {
			t.Errorf("alert at %v %%", v.AlertPercent)
		}
	})
}

// An early alert never evicts anybody, nor does it take an eviction back.
func TestUsualUseMovesTheAlertAlone(t *testing.T) {
	for _, margin := range []float64{-50, 0, 100, 480, 900, 1500, 2000, 3000} {
		for _, flat := range []bool{false, true} {
			in := input(still(time.Hour, 100, margin))
			in.Config.EvictWhenFlat = flat
			plain, _ := Assess(in, Memory{})
			in.Config.BaselinePercent = 40
			early, _ := Assess(in, Memory{})
			if early.Now != plain.Now && !(plain.Now == Calm && early.Now == Alert) || early.Need != plain.Need {
				t.Errorf("margin %v: %v and %v", margin, plain.Now, early.Now)
			}
		}
	}
}

// Beside victims on their way out, the next one need only bridge its own lead time.
func TestHorizonBesideVictimsInFlight(t *testing.T) {
	for _, tc := range []struct {
		name   string
		credit Credit
		want   time.Duration
	}{
		{"nobody", Credit{}, 30 * time.Second},
		{"memory", Credit{Release: testMiB}, 12 * time.Second},
		{"growth", Credit{Growth: 1}, 12 * time.Second},
		{"both", Credit{Release: testGiB, Growth: 1e8}, 12 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(still(time.Hour, 100, 480))
			in.LeadTime, in.Credit = 10*time.Second, tc.credit
			if v, _ := Assess(in, Memory{}); v.Need.Horizon != tc.want {
				t.Errorf("horizon %v, want %v", v.Need.Horizon, tc.want)
			}
		})
	}
}

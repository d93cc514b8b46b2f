package kube

import "testing"

func TestLossNeedsManyPacketsAndStaysUntilItIsLow(t *testing.T) {
	var l loss
	var sent, again uint32
	for i, step := range []struct {
		sent, again uint32
		bad         bool
	}{
		{150, 40, false}, // too few to tell
		{1000, 0, false},
		{200, 6, false},
		{200, 20, true},
		{200, 6, true}, // between the two bounds: as before
		{150, 0, true},
		{200, 1, false},
		{200, 0, false},
	} {
		sent, again = sent+step.sent, again+step.again
		for range lossSeconds {
			l.count(sent, again)
		}
		if (l.why != "") != step.bad {
			t.Errorf("step %d: %q", i, l.why)
		}
	}
}

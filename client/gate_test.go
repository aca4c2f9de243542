package client

import (
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

func TestGateKeepsTheRate(t *testing.T) {
	begin := time.Now()
	for _, tt := range []struct {
		rate float64
		step time.Duration // how often the gate is asked
		want int           // devices in the first 10 s
	}{
		{0, time.Second, 11},
		{1, 10 * time.Millisecond, 11},
		{0.5, 10 * time.Millisecond, 6},
		{100, 7 * time.Millisecond, 1001},      // a timer that is late costs nothing
		{10000, 20 * time.Millisecond, 100000}, // more than one at each look
		{100, 100 * time.Millisecond, 606},     // but what was missed for long is not made up for at once
	} {
		g := newGate(FanOut{Rate: tt.rate})
		n := 0
		for at := time.Duration(0); at <= 10*time.Second; at += tt.step {
			for g.pass(begin.Add(at)) {
				n++
				if tt.rate == 0 {
					break // for ever
				}
			}
		}
		if n < tt.want*98/100 || n > tt.want*102/100+1 {
			t.Errorf("rate %v, asked each %v: %d devices in 10 s, want %d", tt.rate, tt.step, n, tt.want)
		}
	}
}

func TestGateShuts(t *testing.T) {
	closed := make(chan struct{})
	close(closed)
	for _, tt := range []struct {
		name      string
		f         FanOut
		good, bad int
		shut      bool
	}{
		{"nothing ended", FanOut{Abort: &Abort{}}, 0, 0, false},
		{"no abort", FanOut{}, 0, 100, false},
		{"the first", FanOut{Abort: &Abort{}}, 99, 1, true},
		{"the share exactly", FanOut{Abort: &Abort{Share: 0.1}}, 90, 10, false},
		{"more than the share", FanOut{Abort: &Abort{Share: 0.1}}, 89, 11, true},
		{"too few have ended", FanOut{Abort: &Abort{Share: 0.1, Min: 10}}, 0, 9, false},
		{"enough have ended", FanOut{Abort: &Abort{Share: 0.1, Min: 10}}, 0, 10, true},
		{"all may fail", FanOut{Abort: &Abort{Share: 1}}, 0, 10, false},
		{"stopped", FanOut{Stop: closed}, 1, 0, true},
		{"not stopped", FanOut{Stop: make(chan struct{})}, 1, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(tt.f)
			for range tt.good {
				g.ended(true, nil)
			}
			for range tt.bad {
				g.ended(false, fault(command.OutcomeOffline, nil, ""))
			}
			g.ended(false, fault(command.OutcomeFailed, ErrNotStarted, "")) // does not count
			if err := g.shut(); (err != nil) != tt.shut {
				t.Errorf("shut: %v", err)
			}
		})
	}
}

func TestFanOutIsChecked(t *testing.T) {
	nan := 0.0
	nan /= nan
	for name, f := range map[string]FanOut{
		"negative rate": {Rate: -1}, "no number": {Rate: nan}, "endless rate": {Rate: MaxRate * 2}, "share above 1": {Abort: &Abort{Share: 1.1}},
		"share no number": {Abort: &Abort{Share: nan}}, "negative least": {Abort: &Abort{Min: -1}}, "window": {Window: MaxWindow + 1},
	} {
		if err := f.setDefaults(DefaultWindow, time.Second); err == nil || err.Outcome != command.OutcomeRejected {
			t.Errorf("%s: %v", name, err)
		}
	}
}

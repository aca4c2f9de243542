package brokertime

import (
	"errors"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// atHand is a monotonic clock that a test moves.
type atHand struct{ now time.Duration }

func (a *atHand) read() time.Duration { return a.now }

func TestUnsyncedClockTellsNoTime(t *testing.T) {
	var c Clock
	if _, ok := c.Earliest(); ok {
		t.Error("Earliest is ok before the first sync")
	}
	if _, ok := c.Latest(); ok {
		t.Error("Latest is ok before the first sync")
	}
	if _, ok := c.Age(); ok {
		t.Error("Age is ok before the first sync")
	}
}

func TestBoundsHoldTheBrokersTime(t *testing.T) {
	const rtt = 80 * time.Millisecond
	for _, tc := range []struct {
		name string
		left time.Duration // when within the round trip the answer left the server
		skew float64       // by how much the device's oscillator is slow
		wait time.Duration
	}{
		{name: "answer left at once", left: 0},
		{name: "answer left at the end", left: rtt},
		{name: "an hour later", left: rtt / 2, wait: time.Hour},
		{name: "an hour later with a slow oscillator", left: rtt / 2, skew: 100e-6, wait: time.Hour},
		{name: "an hour later with a fast oscillator", left: rtt / 2, skew: -100e-6, wait: time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var hand atHand
			hand.now = 5 * time.Minute
			c := Clock{Monotonic: hand.read}
			c.set(noon.Add(tc.left), hand.now, hand.now+rtt) // the question leaves at noon, broker time
			hand.now += rtt + tc.wait - time.Duration(float64(tc.wait)*tc.skew)
			truth := noon.Add(rtt + tc.wait)
			early, _ := c.Earliest()
			late, _ := c.Latest()
			if early.After(truth) || late.Before(truth) {
				t.Errorf("bounds %v … %v do not hold %v", early, late, truth)
			}
			if most := rtt + time.Duration(4*Drift*float64(rtt+tc.wait)); late.Sub(early) > most {
				t.Errorf("bounds are %v apart, more than %v", late.Sub(early), most)
			}
		})
	}
}

func TestAgeCountsFromTheAnswer(t *testing.T) {
	var hand atHand
	c := Clock{Monotonic: hand.read}
	c.set(noon, 0, time.Second)
	hand.now = 3 * time.Second
	if age, ok := c.Age(); !ok || age != 2*time.Second {
		t.Errorf("age = %v, %v", age, ok)
	}
}

func TestMonotonicGoesForward(t *testing.T) {
	last := monotonic()
	for range 1000 {
		now := monotonic()
		if now < last {
			t.Fatalf("%v came after %v", now, last)
		}
		last = now
	}
}

func TestAnswersWithoutTimeAreErrors(t *testing.T) {
	for _, tc := range []struct{ name, data string }{
		{"empty", ""},
		{"no object", "[]"},
		{"no server", `{"data":{"user":"ops"}}`},
		{"time is no time", `{"server":{"time":"noon"}}`},
		{"an error", `{"error":{"code":503,"description":"not available"}}`},
	} {
		if _, err := decodeUserInfo([]byte(tc.data)); err == nil {
			t.Errorf("%s: no error", tc.name)
		}
	}
	if _, err := decodeUserInfo([]byte("{}")); !errors.Is(err, ErrNoTime) {
		t.Errorf("err = %v", err)
	}
}

func FuzzDecodeUserInfo(f *testing.F) {
	f.Add([]byte(`{"server":{"name":"fleet","time":"2026-01-02T15:04:05.123456789Z"},"data":{"user":"ops","account":"OPS","expires":3600000000000}}`))
	f.Add([]byte(`{"error":{"code":503,"description":"x"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := decodeUserInfo(data)
		if err == nil && info.Server.Time.IsZero() {
			t.Errorf("no time and no error: %q", data)
		}
	})
}

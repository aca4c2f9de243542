package bench

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// Every measurement runs, at a size that tells nothing about speed.
func TestMeasurementsGiveTheirFigures(t *testing.T) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the issuer's provider library logs there
	soon := []nats.Option{nats.ReconnectWait(10 * time.Millisecond), nats.ReconnectJitter(time.Millisecond, time.Millisecond)}
	results, err := Run(t.Context(), Options{Agents: 20, Pings: 10, Logins: 20, Rounds: 1, Return: 5, Execs: 40, Growth: 400, StreamMiB: 1, connect: soon}, All()...)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range results {
		if names[r.Name] || r.What == "" || r.Unit == "" || r.Value <= 0 {
			t.Errorf("result %+v", r)
		}
		if r.Bare != 0 && r.Ratio != r.Value/r.Bare {
			t.Errorf("%s: ratio %v of %v and %v", r.Name, r.Ratio, r.Value, r.Bare)
		}
		names[r.Name] = true
	}
	for _, want := range []string{"ping_p50", "scatter", "exec", "stream", "memory", "growth", "offline_p50", "agent_start", "callout", "reconnect", "reconnect_tls"} {
		if !names[want] {
			t.Errorf("no %s among %v", want, names)
		}
	}
}

func TestTableAndJSONSayTheSame(t *testing.T) {
	results := []Result{
		Result{Name: "a", What: "one thing", Unit: "us", Value: 120}.against(100, 1.1),
		{Name: "b", What: "another", Unit: "ms", Value: 5.5, Target: "< 6 ms", Met: true},
		Result{Name: "c", What: "a third", Unit: "1/s", Value: 2}.beside(4),
	}
	var table, lines bytes.Buffer
	if err := WriteTable(&table, results); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| one thing | 120 µs | 100 µs | 1.20 | <= 1.1x bare | no |", "| another | 5.50 ms | – | – | < 6 ms | yes |", "| a third | 2.00 1/s | 4.00 1/s | 0.50 |  | – |"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, &table)
		}
	}
	if err := WriteJSON(&lines, results); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(&lines)
	for _, want := range results {
		var got Result
		if err := dec.Decode(&got); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	samples := []time.Duration{5, 1, 4, 2, 3}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 1: 5} {
		if got := quantile(samples, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("a quantile of nothing")
	}
}

func TestByNameNamesWhatThereIs(t *testing.T) {
	if _, err := ByName("ping", "speed"); err == nil || !strings.Contains(err.Error(), "scatter") {
		t.Errorf("err = %v", err)
	}
}

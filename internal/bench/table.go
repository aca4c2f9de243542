package bench

import (
	"encoding/json"
	"fmt"
	"io"
)

// WriteTable prints results as a Markdown table.
func WriteTable(w io.Writer, results []Result) error {
	if _, err := fmt.Fprintf(w, "| what | measured | bare NATS | ratio | target | met |\n| --- | --- | --- | --- | --- | --- |\n"); err != nil {
		return err
	}
	for _, r := range results {
		bare, ratio, met := "–", "–", "yes"
		if r.Bare != 0 {
			bare, ratio = number(r.Bare, r.Unit), fmt.Sprintf("%.2f", r.Ratio)
		}
		if !r.Met {
			met = "no"
		}
		if r.Target == "" {
			met = "–"
		}
		if _, err := fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.What, number(r.Value, r.Unit), bare, ratio, r.Target, met); err != nil {
			return err
		}
	}
	return nil
}

func number(v float64, unit string) string {
	if unit == "us" {
		unit = "µs"
	}
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f %s", v, unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}

// WriteJSON prints one JSON object per line.
func WriteJSON(w io.Writer, results []Result) error {
	enc := json.NewEncoder(w)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

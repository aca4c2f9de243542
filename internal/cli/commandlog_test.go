package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

func TestCommandLogKeepsItsBoundAndEveryLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "harmony-fleet", "commands.log")
	entry := commandLogEntry{Time: time.Unix(1, 0).UTC(), Server: "nats://x", Verb: command.VerbPing, DeviceID: "d",
		Outcome: command.OutcomeOffline, Message: strings.Repeat("m", 1000)}
	const writers, writes = 4, 200 // 4*200*1.1 KB: one rotation or none
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range writes {
				if err := appendCommandLog(path, []commandLogEntry{entry, entry}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	lines := 0
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm() != 0o600 || info.Size() > maxCommandLog+4096 {
			t.Fatalf("%s: %v, %v", p, info, err)
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			var e commandLogEntry
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("a torn line: %v", err)
			}
			lines++
		}
	}
	if lines != 2*writers*writes {
		t.Errorf("%d lines, want %d", lines, 2*writers*writes)
	}
}

func TestCommandLogHoldsOnlyWhatNoDeviceKnows(t *testing.T) {
	for _, c := range []struct {
		err  command.Error
		want bool
	}{
		{command.Error{Outcome: command.OutcomeOffline}, true},
		{command.Error{Outcome: command.OutcomeTimeout}, true},
		{command.Error{Outcome: command.OutcomeDenied}, true},
		{command.Error{Outcome: command.OutcomeDenied, Kind: command.KindDenied}, false},
		{command.Error{Outcome: command.OutcomeRejected}, false},
		{command.Error{Outcome: command.OutcomeBusy, Kind: command.KindBusy}, false},
	} {
		if got := unseen(&c.err); got != c.want {
			t.Errorf("%v (kind %q): %v", c.err.Outcome, c.err.Kind, got)
		}
	}
}

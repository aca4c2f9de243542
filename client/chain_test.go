package client

import (
	"fmt"
	"testing"

	"github.com/harmony-fleet/fleet/command"
)

// TestChainsKeepTheLastRecordOfEveryDevice: memory is bounded, and yet a device
// that speaks up again after all the others did has no gap.
func TestChainsKeepTheLastRecordOfEveryDevice(t *testing.T) {
	var chains Chains
	devices := rememberedRecords + 100
	add := func(device int, seq uint64, prev string) (hash string, fresh bool) {
		id := fmt.Sprintf("d%d", device)
		raw := fmt.Appendf(nil, "%s/%d", id, seq)
		gap, fresh := chains.Add(AuditEntry{Raw: raw, Record: command.AuditRecord{DeviceID: id, Instance: "i", Seq: seq, Prev: prev}})
		if gap != nil {
			t.Fatalf("record %d: %v", seq, gap)
		}
		return command.AuditHash(raw), fresh
	}
	last := make([]string, devices)
	for seq := uint64(7); seq < 10; seq++ {
		for d := range devices {
			last[d], _ = add(d, seq, last[d])
		}
	}
	held := 0
	for _, c := range chains.devices {
		held += len(c.records)
	}
	if most := rememberedRecords + devices; held > most {
		t.Errorf("%d records in memory, want at most %d", held, most)
	}
	if _, fresh := add(0, 9, ""); fresh {
		t.Error("the same record again counts as a new one")
	}
	if gap, fresh := chains.Add(AuditEntry{Raw: []byte("x"), Record: command.AuditRecord{DeviceID: "d0", Instance: "i", Seq: 12, Prev: "y"}}); gap == nil || !fresh || gap.After != 9 || gap.Before != 12 {
		t.Errorf("two records are missing: %+v, %v", gap, fresh)
	}
}

package client

import (
	"fmt"

	"github.com/harmony-fleet/fleet/command"
)

// Gap is a place where a device's chain of audit records does not hold: records
// are missing, or were changed.
type Gap struct {
	Device, Instance string
	// After and Before are the numbers of the records on both sides, within the
	// instance. After is 0 where the gap is before the first record of the instance
	// that is there.
	After, Before uint64
	Reason        string
}

// String reads "vm-device-00 (instance k3v…): 2 records are missing between 4 and 7".
func (g Gap) String() string {
	return fmt.Sprintf("%s (instance %s): %s", g.Device, g.Instance, g.Reason)
}

// CheckChain looks for gaps in the chains of records, one chain for each device.
// Entries are in the order of the stream and of all verbs. What lies before the
// first entry of a device cannot be told, since the stream drops old records;
// because it keeps a number of them for each verb, a device that was asked one
// verb much more often than others has gaps among the old ones with nothing
// amiss.
func CheckChain(entries []AuditEntry) []Gap {
	chains := map[string]*chain{}
	var gaps []Gap
	for _, e := range entries {
		c := chains[e.Record.DeviceID]
		if c == nil {
			c = &chain{byHash: map[string]link{}, followed: map[string]bool{}, last: map[string]uint64{}}
			chains[e.Record.DeviceID] = c
		}
		if reason, after := c.add(e); reason != "" {
			gaps = append(gaps, Gap{Device: e.Record.DeviceID, Instance: e.Record.Instance, After: after, Before: e.Record.Seq, Reason: reason})
		}
	}
	return gaps
}

// link is what a chain keeps of a record.
type link struct {
	instance string
	seq      uint64
}

// chain is one device's records, by hash.
type chain struct {
	byHash   map[string]link
	followed map[string]bool   // hashes that a record names as the one before it
	last     map[string]uint64 // highest number, by instance
}

// add takes the next record in. reason is empty where it follows from one that
// is there.
func (c *chain) add(e AuditEntry) (reason string, after uint64) {
	r, hash := e.Record, command.AuditHash(e.Raw)
	if _, again := c.byHash[hash]; again {
		return "", 0 // devices publish again what they do not know to be stored
	}
	first := len(c.byHash) == 0
	after = c.last[r.Instance]
	reason = c.fault(r, first, after)
	c.byHash[hash] = link{r.Instance, r.Seq}
	c.followed[r.Prev] = true
	c.last[r.Instance] = max(after, r.Seq)
	return reason, after
}

func (c *chain) fault(r command.AuditRecord, first bool, after uint64) string {
	before, there := c.byHash[r.Prev]
	switch {
	case r.Lost > 0:
		return fmt.Sprintf("the device could not keep %d records before record %d", r.Lost, r.Seq)
	case first:
		return ""
	case r.Prev == "":
		return fmt.Sprintf("record %d begins a new chain: the device lost its state, or another one uses its id", r.Seq)
	case there && c.followed[r.Prev]:
		return fmt.Sprintf("record %d and another one follow the same record: one of them is not the device's, or two devices use its id", r.Seq)
	case there && before.instance == r.Instance && r.Seq != before.seq+1:
		return fmt.Sprintf("record %d follows record %d: the numbers do not fit", r.Seq, before.seq)
	case there && before.instance != r.Instance && r.Seq != 1:
		return fmt.Sprintf("the first record of the instance is number %d", r.Seq)
	case there:
		return ""
	case after == 0 && r.Seq == 1:
		return "the last records of the instance before are missing, or were changed"
	case after == 0:
		return fmt.Sprintf("%d records before record %d are missing", r.Seq-1, r.Seq)
	case r.Seq > after+1:
		return fmt.Sprintf("%d records are missing between %d and %d", r.Seq-after-1, after, r.Seq)
	}
	return fmt.Sprintf("record %d does not follow from record %d: one of them was changed", r.Seq, after)
}

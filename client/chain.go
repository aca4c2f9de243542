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

// CheckChain looks for gaps in the chains of records: see [Chains].
func CheckChain(entries []AuditEntry) []Gap {
	var chains Chains
	var gaps []Gap
	for _, e := range entries {
		if gap, _ := chains.Add(e); gap != nil {
			gaps = append(gaps, *gap)
		}
	}
	return gaps
}

// Chains looks for gaps in the chains of audit records as they come, one chain
// for each device. Entries are added in the order of the stream and of all verbs.
// What lies before the first entry of a device cannot be told, since the stream
// drops old records; because it keeps a number of them for each verb, a device
// that was asked one verb much more often than others has gaps among the old ones
// with nothing amiss.
//
// The zero value is ready. It is not for concurrent use. It remembers the last
// 65,536 records, and the last one of every device.
type Chains struct {
	devices map[string]*chain
	// order is the records in memory, oldest first, in a ring.
	order []remembered
	next  int // where the next one goes, once the ring is full
}

const rememberedRecords = 1 << 16

type remembered struct {
	chain *chain
	hash  string
}

// Add takes the next record in. gap is nil where it follows from one that is
// there. fresh is false where it is stored a second time: devices publish again
// what they do not know to be stored.
func (c *Chains) Add(e AuditEntry) (gap *Gap, fresh bool) {
	if c.devices == nil {
		c.devices = map[string]*chain{}
	}
	device := c.devices[e.Record.DeviceID]
	if device == nil {
		device = &chain{records: map[string]link{}, highest: map[string]uint64{}}
		c.devices[e.Record.DeviceID] = device
	}
	hash := command.AuditHash(e.Raw)
	if device.has(hash) {
		return nil, false
	}
	reason, after := device.add(e.Record, hash)
	c.remember(remembered{device, hash})
	if reason == "" {
		return nil, true
	}
	return &Gap{Device: e.Record.DeviceID, Instance: e.Record.Instance, After: after, Before: e.Record.Seq, Reason: reason}, true
}

func (c *Chains) remember(r remembered) {
	if len(c.order) < rememberedRecords {
		c.order = append(c.order, r)
		return
	}
	c.order[c.next].forget()
	c.order[c.next] = r
	c.next = (c.next + 1) % rememberedRecords
}

// forget drops a record, or the one that its device sent last once that is
// followed by another.
func (r remembered) forget() {
	if r.hash == r.chain.last {
		r.chain.lastOnly = true
		return
	}
	delete(r.chain.records, r.hash)
}

// link is what a chain keeps of a record.
type link struct {
	instance string
	seq      uint64
	followed bool // another record names it as the one before
}

// chain is one device's records, by hash.
type chain struct {
	records  map[string]link
	last     string            // hash of the record that came last; empty: none came
	lastOnly bool              // it is in no ring any more
	highest  map[string]uint64 // number, by instance
}

func (c *chain) has(hash string) bool {
	_, has := c.records[hash]
	return has
}

// add takes the next record in. reason is empty where it follows from one that
// is there.
func (c *chain) add(r command.AuditRecord, hash string) (reason string, after uint64) {
	after = c.highest[r.Instance]
	reason = c.fault(r, after)
	if before, there := c.records[r.Prev]; there {
		before.followed = true
		c.records[r.Prev] = before
	}
	c.records[hash] = link{instance: r.Instance, seq: r.Seq}
	c.highest[r.Instance] = max(after, r.Seq)
	if c.lastOnly {
		delete(c.records, c.last)
	}
	c.last, c.lastOnly = hash, false
	return reason, after
}

func (c *chain) fault(r command.AuditRecord, after uint64) string {
	before, there := c.records[r.Prev]
	switch {
	case r.Lost > 0:
		return fmt.Sprintf("the device could not keep %d records before record %d", r.Lost, r.Seq)
	case c.last == "":
		return ""
	case r.Prev == "":
		return fmt.Sprintf("record %d begins a new chain: the device lost its state, or another one uses its id", r.Seq)
	case there && before.followed:
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

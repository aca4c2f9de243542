package cli

import (
	"fmt"

	"github.com/harmony-fleet/fleet/command"
)

// auditChains follows the chain of each device's audit records as they come:
// every record carries the hash of the one before it, and a number that counts
// per run of the agent.
type auditChains struct {
	last map[string]auditLink // by device

	// seen and order hold the hashes of the last records, whichever device they
	// are of: a device that does not know that a record was stored publishes it again.
	seen  map[string]bool
	order []string
}

const rememberedRecords = 8192

type auditLink struct {
	hash, instance string
	seq            uint64
}

func newAuditChains() *auditChains {
	return &auditChains{last: map[string]auditLink{}, seen: map[string]bool{}}
}

// add takes the next record of a device, as it was stored. fresh is false where
// it was there before. gap says what is wrong between it and the one before; ""
// where it fits. The first record seen of a device is taken as it is.
func (c *auditChains) add(r command.AuditRecord, raw []byte) (gap string, fresh bool) {
	hash := command.AuditHash(raw)
	if c.seen[hash] {
		return "", false
	}
	if len(c.order) == rememberedRecords {
		delete(c.seen, c.order[0])
		c.order = c.order[1:]
	}
	c.order = append(c.order, hash)
	c.seen[hash] = true
	last, known := c.last[r.DeviceID]
	c.last[r.DeviceID] = auditLink{hash: hash, instance: r.Instance, seq: r.Seq}
	switch {
	case r.Lost > 0:
		return fmt.Sprintf("%d records before this one could not be kept by the device", r.Lost), true
	case !known, r.Prev == last.hash:
		return "", true
	case r.Prev == "":
		return "the chain starts anew: the agent had lost its state", true
	case r.Instance != last.instance:
		return "records are missing across a restart of the agent: aged out, or withheld", true
	case r.Seq > last.seq+1:
		return fmt.Sprintf("%d records are missing: aged out, or withheld", r.Seq-last.seq-1), true
	case r.Seq == last.seq+1:
		return "the record before this one is not the one that the device wrote", true
	}
	return "records are out of order", true
}

package mirror

import (
	"reflect"

	"github.com/harmony-fleet/fleet/command"
)

func (m *Mirror) takeStatus(msg message) {
	status, err := readStatus(msg.device, msg.msg.Data())
	m.takePart(partStatus, msg, err, func(e *entry, d *Device) bool {
		d.StatusSeq = msg.seq
		if err != nil {
			fault := cut(err.Error(), maxMessage)
			changed := d.StatusFault != fault
			d.Status, d.StatusFault = nil, fault
			return changed
		}
		if d.StatusFault == "" && d.Status != nil && reflect.DeepEqual(*d.Status, status) {
			return false
		}
		d.Status, d.StatusFault = &status, ""
		return true
	})
}

func (m *Mirror) takeDocument(msg message) {
	doc := Document{Revision: msg.seq, Stored: msg.stored}
	var err error
	if doc.Deleted = msg.deleted(); !doc.Deleted {
		doc.State, doc.Owners, err = m.readDocument(msg.msg)
	}
	if err != nil {
		doc.Fault = cut(err.Error(), maxMessage)
	}
	m.takePart(partDocument, msg, err, func(e *entry, d *Device) bool { return e.takeDocument(d, doc) })
}

// takeDocument takes doc unless a later one was taken already: the mirror's own
// writes are known before they come back.
func (e *entry) takeDocument(d *Device, doc Document) bool {
	if doc.Revision <= d.Document.Revision {
		return false
	}
	d.Document = doc
	return true
}

func (m *Mirror) takeLabels(msg message) {
	var doc command.DeviceLabels
	var err error
	if !msg.deleted() {
		doc, err = command.DecodeDocument[command.DeviceLabels](msg.msg.Data())
	}
	fault, labels := "", intern(doc.Labels)
	if err != nil {
		fault = cut(err.Error(), maxMessage)
	}
	m.takePart(partLabels, msg, err, func(e *entry, d *Device) bool { return e.takeLabels(d, msg.seq, labels, fault) })
}

// takeLabels takes labels unless later ones were taken already. A revision that
// changes nothing is told as well: what is written next must expect it.
func (e *entry) takeLabels(d *Device, revision uint64, labels map[string]string, fault string) bool {
	if revision <= d.LabelsRevision {
		return false
	}
	d.Labels, d.LabelsRevision, d.LabelsFault = labels, revision, fault
	return true
}

// takePart takes one part of a device as change has it. err says that its message
// cannot be read: that is counted, and logged once until one can.
func (m *Mirror) takePart(part int, msg message, err error, change func(*entry, *Device) bool) {
	epoch := m.feeds[part].epoch.Load()
	complain := false
	m.update(msg.device, func(e *entry, d *Device) bool {
		if e.epoch[part] != epoch {
			// The sequences of another stream say nothing about this one's.
			if e.epoch[part] != 0 {
				forget(d, part)
			}
			e.epoch[part] = epoch
		}
		complain = err != nil && !e.complained[part]
		e.complained[part] = err != nil
		return change(e, d)
	})
	if err != nil {
		m.unreadable[part].Add(1)
	}
	if complain {
		m.log.Warn("a message cannot be read; it is told once until one can", "device", msg.device, "of", partNames[part], "seq", msg.seq, "error", err)
	}
}

// sweep forgets of every device the part that was not seen in that epoch.
func (m *Mirror) sweep(part int, epoch uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, e := range m.devices {
		if e.epoch[part] == epoch || e.epoch[part] == 0 {
			continue
		}
		e.epoch[part] = 0
		forget(&e.dev, part)
		m.notify(id)
	}
}

// forget takes away what the part gave.
func forget(d *Device, part int) {
	switch part {
	case partStatus:
		d.Status, d.StatusSeq, d.StatusFault = nil, 0, ""
	case partDocument:
		d.Document = Document{}
	case partLabels:
		d.Labels, d.LabelsRevision, d.LabelsFault = nil, 0, ""
	}
	// A heartbeat that was heard was heard: its time runs out by itself.
}

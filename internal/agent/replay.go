package agent

import (
	"container/list"
	"sync"
	"time"

	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/agent/journal"
)

// table makes a request id run at most once. Its key is the verified caller and
// the request id; verb and payload digest must be the same each time.
//
// Requests that change something stay until well after their deadline, when a
// copy of the command would be refused as expired anyway, and are never pushed
// out: a full table answers busy, and so does one in which the caller has used up
// a share, so that nobody fills it for the others. The others change nothing and
// are kept as long as there is room.
//
// What changes something is in the journal too, so that a restart of the agent
// does not forget it: start puts it there before the handler runs, finish and
// ended say how it ended, and restore reads it back.
type table struct {
	maxLasting int
	maxPassing int
	maxBytes   int // of replies of lasting requests
	most       int // lasting requests of one caller; 0: as many as of all
	mostBytes  int // of replies to one caller; 0: as many as to all

	journal *journal.Journal // nil: memory only
	ends    sync.Mutex       // held while the journal is told how a request ended

	mu      sync.Mutex
	entries map[requestKey]*entry // nil until first use: most agents are idle
	passing list.List             // of *entry, the latest in front
	lasting int
	bytes   int
	shares  map[string]share // by caller's UID: of what is lasting
	oldest  time.Time        // no lasting entry ends before this
	dropped []journal.Key    // not taken out of the journal yet
}

const (
	defaultPassing  = 256
	defaultMaxBytes = 16 << 20
	// keptBeyond is how long a request id outlives its deadline. It covers the
	// spread between bounds of broker time that were taken at different moments.
	keptBeyond = time.Minute
	// resultsKept is how much longer the verb result can ask for it, as long as there
	// is room.
	resultsKept = time.Hour
)

// share is what one caller has of the table.
type share struct{ lasting, bytes int }

// callerShares is how many callers it takes to use up a limit of the agent.
const callerShares = 4

type requestKey struct{ uid, id string }

type entry struct {
	key    requestKey
	verb   command.Verb
	digest string
	ends   time.Time     // lasting entries: when it may be forgotten
	place  *list.Element // passing entries

	finished bool
	reply    reply

	// Of lasting entries:
	deadline  time.Time
	journaled bool
	open      bool           // finished, and its process goes on
	over      bool           // its process has ended
	exitCode  *int           // of its process
	failure   *command.Error // why its process ended, if not by itself
	job       string         // that it is a part of; not known of an earlier run
	result    *command.JobResult
}

// running tells whether the entry must stay whatever its age.
func (e *entry) running() bool { return !e.finished || e.open }

// reply is what was answered first.
type reply struct {
	data []byte
	err  *command.Error // nil: data is the verb's reply object

	session  bool // it accepts a session, whose process goes on
	exitCode *int // of the process, where it has ended
}

func (r reply) size() int {
	if r.err != nil {
		return len(r.err.Message)
	}
	return len(r.data)
}

// begin takes a request in. Exactly one of its results is set: a new entry that
// the caller runs and ends with finish or forget, the first reply of one that
// has finished, or a refusal.
func (t *table) begin(key requestKey, verb command.Verb, digest string, now, deadline time.Time) (*entry, *reply, *command.Error) {
	defer t.forgetDropped()
	t.mu.Lock()
	defer t.mu.Unlock()
	if first, refusal := t.knownLocked(key, verb, digest); first != nil || refusal != nil {
		return nil, first, refusal
	}
	e := &entry{key: key, verb: verb, digest: digest}
	if verb.Changes() {
		t.sweep(now, t.full(key.uid))
		mine := t.shares[key.uid]
		switch {
		case t.fullForAll():
			return nil, nil, command.NewError(command.KindBusy,
				"too many request ids are remembered (%d); try again when the deadlines of earlier commands have passed", t.lasting)
		case t.full(key.uid):
			return nil, nil, command.NewError(command.KindBusy,
				"too many request ids of this caller are remembered (%d); try again when the deadlines of earlier commands have passed", mine.lasting)
		}
		e.deadline = deadline
		t.addLasting(e)
	} else {
		e.place = t.passing.PushFront(e)
		if t.passing.Len() > t.maxPassing {
			t.drop(t.passing.Back().Value.(*entry))
		}
	}
	if t.entries == nil {
		t.entries = make(map[requestKey]*entry)
	}
	t.entries[key] = e
	return e, nil, nil
}

// known looks a request up: its first reply, or a refusal, where it was taken in
// before; neither where it was not, or is forgotten.
func (t *table) known(key requestKey, verb command.Verb, digest string) (*reply, *command.Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.knownLocked(key, verb, digest)
}

func (t *table) knownLocked(key requestKey, verb command.Verb, digest string) (*reply, *command.Error) {
	e := t.entries[key]
	switch {
	case e == nil:
		return nil, nil
	case e.verb != verb || e.digest != digest:
		return nil, command.NewError(command.KindBadRequest,
			"request id %s was used for another command by the same caller; make a new id for each command", key.id)
	case !e.finished:
		return nil, command.NewError(command.KindDuplicate, "the same request is running")
	}
	return &e.reply, nil
}

func (t *table) addLasting(e *entry) {
	t.give(e.key.uid, 1, e.reply.size())
	e.ends = e.deadline.Add(keptBeyond)
	if t.lasting == 1 || e.ends.Before(t.oldest) {
		t.oldest = e.ends
	}
}

// full tells whether there is no room for another request of the caller.
func (t *table) full(uid string) bool {
	mine := t.shares[uid]
	return t.fullForAll() || t.most > 0 && mine.lasting >= t.most || t.mostBytes > 0 && mine.bytes >= t.mostBytes
}

func (t *table) fullForAll() bool { return t.lasting >= t.maxLasting || t.bytes >= t.maxBytes }

// finish keeps the reply for whoever asks again. An error is of the journal, and
// leaves the table as it should be.
func (t *table) finish(e *entry, r reply) error {
	t.mu.Lock()
	if e.finished || t.entries[e.key] != e {
		t.mu.Unlock()
		return nil
	}
	e.finished, e.reply = true, r
	e.open = r.session && !e.over
	if r.exitCode != nil {
		e.exitCode = r.exitCode
	}
	if e.place == nil {
		t.give(e.key.uid, 0, r.size())
	}
	t.mu.Unlock()
	return t.journalEnd(e)
}

// forget takes out a request that did not run.
func (t *table) forget(e *entry) {
	defer t.forgetDropped()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[e.key] == e {
		t.drop(e)
	}
}

// sweep drops lasting entries whose time has come: where room is needed those
// whose copies would be refused as expired, else those whose result is not asked
// for any more. It looks at all of them only when there is something to find.
func (t *table) sweep(now time.Time, pressed bool) {
	if !pressed {
		now = now.Add(-resultsKept)
	}
	if t.lasting == 0 || now.Before(t.oldest) {
		return
	}
	t.oldest = time.Time{}
	for _, e := range t.entries {
		switch {
		case e.place != nil:
		case !e.running() && !now.Before(e.ends):
			t.drop(e)
		case t.oldest.IsZero() || e.ends.Before(t.oldest):
			t.oldest = e.ends
		}
	}
}

func (t *table) drop(e *entry) {
	delete(t.entries, e.key)
	if e.place != nil {
		t.passing.Remove(e.place)
		return
	}
	t.give(e.key.uid, -1, -e.reply.size())
	if e.journaled {
		t.dropped = append(t.dropped, journal.Key{UID: e.key.uid, ID: e.key.id})
	}
}

// give counts lasting requests and bytes of replies.
func (t *table) give(uid string, requests, bytes int) {
	t.lasting += requests
	t.bytes += bytes
	s := t.shares[uid]
	s.lasting += requests
	s.bytes += bytes
	if s == (share{}) {
		delete(t.shares, uid)
		return
	}
	if t.shares == nil {
		t.shares = make(map[string]share)
	}
	t.shares[uid] = s
}

// overlap drops the second copy of a command while two connections of the agent
// take commands. Both copies carry the same reply subject, which the server made
// for that one request.
type overlap struct {
	mu    sync.Mutex
	holds int
	// Two generations bound the memory; each is far longer than the copies are
	// apart.
	young, old map[string]struct{}
}

const overlapGeneration = 32768

func (o *overlap) hold() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.holds++
}

func (o *overlap) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.holds--; o.holds == 0 {
		o.young, o.old = nil, nil
	}
}

// first tells whether reply is seen for the first time.
func (o *overlap) first(reply string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.holds == 0 || reply == "" {
		return true
	}
	if _, seen := o.young[reply]; seen {
		return false
	}
	if _, seen := o.old[reply]; seen {
		return false
	}
	if len(o.young) >= overlapGeneration {
		o.young, o.old = nil, o.young
	}
	if o.young == nil {
		o.young = make(map[string]struct{})
	}
	o.young[reply] = struct{}{}
	return true
}

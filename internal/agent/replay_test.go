package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/command"
)

func newTable() *table { return &table{maxLasting: 3, maxPassing: 4, maxBytes: 1 << 20} }

func TestARequestIDRunsAtMostOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	deadline := now.Add(time.Minute)
	key := requestKey{"alice", "id-1"}
	for _, verb := range []command.Verb{command.VerbPing, command.VerbExec} {
		t.Run(string(verb), func(t *testing.T) {
			tb := newTable()
			e, first, refusal := tb.begin(key, verb, "digest", now, deadline)
			if e == nil || first != nil || refusal != nil {
				t.Fatal("the first one does not run")
			}
			if _, _, refusal := tb.begin(key, verb, "digest", now, deadline); refusal == nil || refusal.Kind != command.KindDuplicate {
				t.Errorf("while it runs: %v", refusal)
			}
			if _, _, refusal := tb.begin(key, verb, "other", now, deadline); refusal == nil || refusal.Kind != command.KindBadRequest {
				t.Errorf("another payload: %v", refusal)
			}
			if other, _, _ := tb.begin(requestKey{"mallory", "id-1"}, verb, "digest", now, deadline); other == nil {
				t.Error("another caller's id stands in the way")
			}
			tb.finish(e, reply{data: []byte("first")})
			tb.finish(e, reply{data: []byte("second")})
			if _, first, _ := tb.begin(key, verb, "digest", now, deadline); first == nil || string(first.data) != "first" {
				t.Errorf("after it ended: %v", first)
			}
			if _, _, refusal := tb.begin(key, command.VerbLogs, "digest", now, deadline); refusal == nil || refusal.Kind != command.KindBadRequest {
				t.Errorf("another verb: %v", refusal)
			}
		})
	}
}

func TestAWithdrawnRequestCanBeRepeated(t *testing.T) {
	tb := newTable()
	now := time.Unix(1000, 0)
	key := requestKey{"alice", "id-1"}
	e, _, _ := tb.begin(key, command.VerbExec, "d", now, now)
	tb.forget(e)
	tb.forget(e)
	if e, _, _ := tb.begin(key, command.VerbExec, "d", now, now); e == nil || tb.lasting != 1 {
		t.Errorf("not taken again; %d kept", tb.lasting)
	}
}

func TestAFullTableIsBusyAndForgetsNothingEarly(t *testing.T) {
	tb := newTable()
	now := time.Unix(1000, 0)
	deadline := now.Add(time.Minute)
	begin := func(i int, at time.Time) (*entry, *command.Error) {
		e, _, refusal := tb.begin(requestKey{"alice", fmt.Sprint(i)}, command.VerbExec, "d", at, deadline)
		return e, refusal
	}
	for i := range 3 {
		e, refusal := begin(i, now)
		if refusal != nil {
			t.Fatal(refusal)
		}
		if i > 0 { // one is still running
			tb.finish(e, reply{data: []byte("done")})
		}
	}
	for _, at := range []time.Time{now, deadline, deadline.Add(keptBeyond - 1)} {
		if _, refusal := begin(9, at); refusal == nil || refusal.Kind != command.KindBusy {
			t.Fatalf("at %v: %v", at, refusal)
		}
	}
	if _, refusal := begin(9, deadline.Add(keptBeyond)); refusal != nil {
		t.Fatal(refusal)
	}
	if tb.lasting != 2 || len(tb.entries) != 2 {
		t.Errorf("%d kept, want the running one and the new one", tb.lasting)
	}
	if _, refusal := begin(0, deadline.Add(keptBeyond)); refusal == nil || refusal.Kind != command.KindDuplicate {
		t.Errorf("the running one: %v", refusal)
	}
}

func TestOneCallerCannotFillTheTable(t *testing.T) {
	tb := newTable()
	tb.maxLasting, tb.most, tb.maxBytes, tb.mostBytes = 8, 2, 1000, 100
	now := time.Unix(1000, 0)
	deadline := now.Add(time.Minute)
	begin := func(uid string, i int, at time.Time) (*entry, *command.Error) {
		e, _, refusal := tb.begin(requestKey{uid, fmt.Sprint(i)}, command.VerbExec, "d", at, deadline)
		return e, refusal
	}
	for i := range 2 {
		e, refusal := begin("mallory", i, now)
		if refusal != nil {
			t.Fatal(refusal)
		}
		tb.finish(e, reply{})
	}
	if _, refusal := begin("mallory", 2, now); refusal == nil || refusal.Kind != command.KindBusy {
		t.Errorf("beyond the share: %v", refusal)
	}
	e, refusal := begin("alice", 0, now)
	if refusal != nil {
		t.Fatalf("another caller: %v", refusal)
	}
	tb.finish(e, reply{data: make([]byte, 100)})
	if _, refusal := begin("alice", 1, now); refusal == nil || refusal.Kind != command.KindBusy {
		t.Errorf("beyond the share of bytes: %v", refusal)
	}
	if e, refusal = begin("bob", 0, now); refusal != nil {
		t.Fatalf("a third caller: %v", refusal)
	}
	tb.forget(e)
	later := deadline.Add(keptBeyond)
	if e, refusal = begin("mallory", 2, later); refusal != nil {
		t.Fatalf("after the deadlines: %v", refusal)
	}
	tb.forget(e)
	if len(tb.shares) != 0 || tb.lasting != 0 || tb.bytes != 0 {
		t.Errorf("%v, %d, %d are counted of nothing", tb.shares, tb.lasting, tb.bytes)
	}
}

func TestRepliesThatAreKeptAreBounded(t *testing.T) {
	tb := newTable()
	tb.maxBytes = 100
	now := time.Unix(1000, 0)
	e, _, _ := tb.begin(requestKey{"a", "1"}, command.VerbExec, "d", now, now)
	tb.finish(e, reply{data: make([]byte, 100)})
	if _, _, refusal := tb.begin(requestKey{"a", "2"}, command.VerbExec, "d", now, now); refusal == nil || refusal.Kind != command.KindBusy {
		t.Error("more is taken in")
	}
	later := now.Add(keptBeyond)
	if e, _, _ := tb.begin(requestKey{"a", "2"}, command.VerbExec, "d", later, later); e == nil || tb.bytes != 0 {
		t.Errorf("%d bytes are counted", tb.bytes)
	}
}

func TestPingsNeverFillTheTable(t *testing.T) {
	tb := newTable()
	now := time.Unix(1000, 0)
	for i := range 1000 {
		e, _, refusal := tb.begin(requestKey{"alice", fmt.Sprint(i)}, command.VerbPing, "d", now, time.Time{})
		if refusal != nil {
			t.Fatal(refusal)
		}
		tb.finish(e, reply{data: []byte("pong")})
	}
	if len(tb.entries) != 4 || tb.passing.Len() != 4 || tb.lasting != 0 || tb.bytes != 0 {
		t.Errorf("%d entries, %d passing, %d lasting, %d bytes", len(tb.entries), tb.passing.Len(), tb.lasting, tb.bytes)
	}
	if _, first, _ := tb.begin(requestKey{"alice", "999"}, command.VerbPing, "d", now, time.Time{}); first == nil {
		t.Error("the latest is forgotten")
	}
}

func TestOverlapLetsEachCommandThroughOnce(t *testing.T) {
	var o overlap
	for range 2 {
		if !o.first("_R_.a") {
			t.Error("with one connection it keeps out nothing")
		}
	}
	o.hold()
	o.hold()
	if !o.first("_R_.a") || o.first("_R_.a") || !o.first("_R_.b") {
		t.Error("with two it lets each through once")
	}
	o.release()
	if o.first("_R_.b") {
		t.Error("one of two holds is left")
	}
	for i := range 3 * overlapGeneration {
		o.first(fmt.Sprint(i))
	}
	if n := len(o.young) + len(o.old); n > 2*overlapGeneration {
		t.Errorf("%d are remembered", n)
	}
	if o.first(fmt.Sprint(3*overlapGeneration - 1)) {
		t.Error("a recent one is forgotten")
	}
	o.release()
	if !o.first("_R_.b") || o.young != nil || o.old != nil {
		t.Error("something is remembered after the overlap")
	}
}

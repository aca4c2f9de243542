package callout

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

func queued(i int) job {
	return job{msg: &nats.Msg{Subject: strconv.Itoa(i)}, received: time.Now()}
}

func wantPop(t *testing.T, q *queue, want string, wantStale int) {
	t.Helper()
	j, stale, ok := q.pop()
	got := ""
	if j.msg != nil {
		got = j.msg.Subject
	}
	if !ok || got != want || stale != wantStale {
		t.Errorf("pop = %q, %d stale, %v; want %q, %d", got, stale, ok, want, wantStale)
	}
}

func TestFullQueueGivesUpTheOldest(t *testing.T) {
	q := newQueue(2, time.Minute)
	for i, want := range []bool{false, false, true} {
		if q.push(queued(i)) != want {
			t.Errorf("push %d", i)
		}
	}
	q.close()
	if !q.push(queued(9)) {
		t.Error("took an entry after close")
	}
	wantPop(t, q, "1", 0)
	wantPop(t, q, "2", 0)
	if _, _, ok := q.pop(); ok || q.len() != 0 {
		t.Error("not empty")
	}
}

func TestOverloadedQueueServesTheYoungestAndDropsTheStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(8, 1500*time.Millisecond)
		for i := range 3 {
			q.push(queued(i))
		}
		wantPop(t, q, "0", 0) // in order while nothing has waited long
		time.Sleep(600 * time.Millisecond)
		q.push(queued(3))
		q.push(queued(4))
		wantPop(t, q, "4", 0)
		wantPop(t, q, "3", 0)
		time.Sleep(time.Second)
		q.push(queued(5))
		wantPop(t, q, "5", 2) // 1 and 2 are stale by now
		q.push(queued(6))
		time.Sleep(2 * time.Second)
		wantPop(t, q, "", 1)
	})
}

package callout

import (
	"sync"
	"time"
)

// queue is a bounded queue of requests that keeps doing useful work when more comes in
// than can be done.
//
// It is first in, first out while the oldest request is younger than a third of maxAge.
// Beyond that it serves the youngest first: in order, every request would be served just
// before its server gives it up, hence in vain, and its client would be back at once to
// make the queue no shorter. What grows older than maxAge is dropped, and so is the oldest
// when the queue is full.
type queue struct {
	maxAge time.Duration

	mu       sync.Mutex
	nonEmpty sync.Cond
	ring     []job
	head, n  int
	closed   bool
}

func newQueue(size int, maxAge time.Duration) *queue {
	q := &queue{ring: make([]job, size), maxAge: maxAge}
	q.nonEmpty.L = &q.mu
	return q
}

// push adds j; dropped tells that the oldest entry, or j itself after close, was lost.
func (q *queue) push(j job) (dropped bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return true
	}
	if q.n == len(q.ring) {
		q.takeOldestLocked()
		dropped = true
	}
	q.ring[(q.head+q.n)%len(q.ring)] = j
	q.n++
	q.nonEmpty.Signal()
	return dropped
}

// pop waits for a request. stale is how many it dropped as too old; j.msg is nil where
// nothing but those was there. ok is false once the queue is closed and empty.
func (q *queue) pop() (j job, stale int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 {
		if q.closed {
			return job{}, 0, false
		}
		q.nonEmpty.Wait()
	}
	for q.n > 0 {
		age := time.Since(q.ring[q.head].received)
		switch {
		case age > q.maxAge:
			q.takeOldestLocked()
			stale++
		case age > q.maxAge/3:
			return q.takeYoungestLocked(), stale, true
		default:
			return q.takeOldestLocked(), stale, true
		}
	}
	return job{}, stale, true
}

func (q *queue) takeOldestLocked() job {
	j := q.ring[q.head]
	q.ring[q.head] = job{}
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return j
}

func (q *queue) takeYoungestLocked() job {
	at := (q.head + q.n - 1) % len(q.ring)
	j := q.ring[at]
	q.ring[at] = job{}
	q.n--
	return j
}

// close takes no more; what is in the queue can still be popped.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.nonEmpty.Broadcast()
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

package syncbuf

import (
	"strings"
	"sync"
	"testing"
)

func TestTheLastBytesAreKept(t *testing.T) {
	for _, tt := range []struct {
		max  int
		want string
	}{{0, "abcdef"}, {6, "abcdef"}, {4, "cdef"}, {1, "f"}} {
		b := Buffer{Max: tt.max}
		for _, s := range []string{"ab", "cd", "", "ef"} {
			if n, err := b.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("write %q: %d, %v", s, n, err)
			}
		}
		if b.String() != tt.want || string(b.Bytes()) != tt.want {
			t.Errorf("at most %d: %q", tt.max, &b)
		}
	}
}

func TestManyWriteAndRead(t *testing.T) {
	var b Buffer
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				_, _ = b.Write([]byte("x"))
				_ = b.String()
			}
		})
	}
	all.Wait()
	if b.String() != strings.Repeat("x", 800) {
		t.Errorf("%d bytes", len(b.Bytes()))
	}
}

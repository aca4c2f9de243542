package workload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/harmony-fleet/fleet/internal/engine"
)

// frames is output as an engine sends it.
func frames(lines ...string) []byte {
	var b []byte
	for _, l := range lines {
		out, text, _ := strings.Cut(l, "|")
		b = append(b, map[string]byte{"out": 1, "err": 2}[out], 0, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		b = append(b, text...)
	}
	return b
}

var pieced = []string{
	"out|2026-01-02T15:04:05Z one\n", "err|2026-01-02T15:04:05Z oops\n", "out|2026-01-02T15:04:05Z two\n", "out|2026-01-02T16:04:06+01:00 lo",
	"out|2026-01-02T15:04:06Z ng\n", "out|2026-01-02T15:04:06.5Z \n", "out|2026-01-02T15:04:07Z a b\n",
}

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestPieces(t *testing.T) {
	for name, c := range map[string]struct {
		show bool
		from position
		want string
	}{
		"plain": {false, position{}, "one\noops\ntwo\nlong\n\na b\n"},
		"with times": {true, position{}, "2026-01-02T15:04:05.000000000Z one\n2026-01-02T15:04:05.000000000Z oops\n2026-01-02T15:04:05.000000000Z two\n" +
			"2026-01-02T15:04:06.000000000Z long\n2026-01-02T15:04:06.500000000Z \n2026-01-02T15:04:07.000000000Z a b\n"},
		"after the second":       {false, position{at("2026-01-02T15:04:05Z"), 2}, "two\nlong\n\na b\n"},
		"after all of a time":    {false, position{at("2026-01-02T15:04:05Z"), 3}, "long\n\na b\n"},
		"of a time that is gone": {false, position{at("2026-01-02T15:04:04Z"), 9}, "one\noops\ntwo\nlong\n\na b\n"},
	} {
		for _, slow := range []bool{false, true} {
			var got bytes.Buffer
			p := &pieces{show: c.show, from: c.from, write: func(_ engine.Output, b []byte) error { got.Write(b); return nil }}
			var r = iotest.DataErrReader(bytes.NewReader(frames(pieced...)))
			if slow {
				r = iotest.OneByteReader(r)
			}
			if err := engine.DemuxFrames(r, p.take); err != nil {
				t.Fatal(err)
			}
			if got.String() != c.want {
				t.Errorf("%s: %q, want %q", name, got.String(), c.want)
			}
			if want := (position{at("2026-01-02T15:04:07Z"), 1}); !p.at.time.Equal(want.time) || p.at.count != want.count {
				t.Errorf("%s: it ended at %+v", name, p.at)
			}
		}
	}
	for _, bad := range []string{"out|no time\n", "out|" + strings.Repeat("2", 200), "out| \n"} {
		p := &pieces{write: func(engine.Output, []byte) error { return nil }}
		if err := engine.DemuxFrames(bytes.NewReader(frames(bad)), p.take); !errors.Is(err, errNoTimes) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// However the output is cut in two, the second read goes on where the first one
// ended.
func FuzzPieces(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 1, 2}, uint8(3))
	f.Add([]byte{5}, uint8(0))
	f.Fuzz(func(t *testing.T, seconds []byte, cut uint8) {
		var all []string
		var want bytes.Buffer
		when := at("2026-01-02T15:04:05Z")
		for i, s := range seconds {
			when = when.Add(time.Duration(s%3) * time.Second)
			text := string(rune('a'+i%26)) + "\n"
			want.WriteString(text)
			all = append(all, "out|"+when.Format(time.RFC3339)+" "+text)
		}
		n := min(int(cut), len(all))
		var got bytes.Buffer
		read := func(from position, lines []string) position {
			p := &pieces{from: from, write: func(_ engine.Output, b []byte) error { got.Write(b); return nil }}
			if err := engine.DemuxFrames(bytes.NewReader(frames(lines...)), p.take); err != nil {
				t.Fatal(err)
			}
			return p.at
		}
		first := read(position{}, all[:n])
		var rest []string // what the engine has since then
		for _, l := range all {
			stamp, _, _ := strings.Cut(strings.TrimPrefix(l, "out|"), " ")
			if !at(stamp).Before(first.time) {
				rest = append(rest, l)
			}
		}
		read(first, rest)
		if got.String() != want.String() {
			t.Fatalf("cut after %d of %v: %q", n, all, got.String())
		}
	})
}

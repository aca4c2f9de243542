// Package logfile reads the file in which Podman (conmon) keeps the output of a
// container, in the format of the Kubernetes CRI:
//
//	2026-01-02T15:04:05.123456789+00:00 stdout F a whole line
//	2026-01-02T15:04:05.123456789+00:00 stderr P the beginning of a line
//
// Podman's own API gives times to the second and costs much more for each line;
// the file has nanoseconds, so that a reader who was cut off goes on exactly
// where it was.
//
//	r, err := logfile.Open(path, logfile.Options{Stdout: true, Follow: true})
//	if errors.Is(err, logfile.ErrFormat) { … } // another driver's file
//	err = r.Copy(ctx, running, write)
package logfile

import (
	"bytes"
	"errors"
	"time"
)

// ErrFormat is for a file that is not in this format.
var ErrFormat = errors.New("not a log file of the CRI's format")

// Stream is which output a line belongs to.
type Stream byte

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// line is one line of the file, or the part of one.
type line struct {
	stamp  []byte // the time, as it stands there
	stream Stream
	whole  bool // the container's line ends here
	// text is what the container wrote, with its newline where it is whole. It is
	// valid until the next read.
	text []byte
}

// parse takes a line of the file apart, newline included.
func parse(raw []byte) (line, error) {
	stamp, rest, ok := bytes.Cut(raw, space)
	name, rest, ok2 := bytes.Cut(rest, space)
	if !ok || !ok2 || len(stamp) < len("2006-01-02T15:04:05Z") || len(rest) < 3 || rest[len(rest)-1] != '\n' || rest[1] != ' ' {
		return line{}, ErrFormat
	}
	l := line{stamp: stamp, text: rest[2:]}
	switch string(name) {
	case "stdout":
		l.stream = Stdout
	case "stderr":
		l.stream = Stderr
	default:
		return line{}, ErrFormat
	}
	switch rest[0] {
	case 'F':
		l.whole = true
	case 'P':
		l.text = l.text[:len(l.text)-1]
	default:
		return line{}, ErrFormat
	}
	return l, nil
}

var space = []byte{' '}

func (l line) time() (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, string(l.stamp))
	if err != nil {
		return time.Time{}, ErrFormat
	}
	return t, nil
}

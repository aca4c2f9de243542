package ctr

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ref    = "harmony-fleet.local/probe:1"
	header = "REF TYPE DIGEST STATUS SIZE UNPACKED\n"
)

func TestUsable(t *testing.T) {
	// As containerd 1.6.20 writes it.
	for _, c := range []struct {
		name, output string
		want         bool
	}{
		{"there", header + ref + " application/vnd.oci.image.manifest.v1+json sha256:0a complete (2/2) 17.0 MiB/17.0 MiB true\n", true},
		{"not unpacked", header + ref + " application/vnd.oci.image.manifest.v1+json sha256:0a complete (2/2) 17.0 MiB/17.0 MiB false\n", false},
		{"incomplete", header + ref + " application/vnd.oci.image.manifest.v1+json sha256:0a incomplete (1/2) 1.0 MiB/17.0 MiB true\n", false},
		{"another", header + ref + "0 application/vnd.oci.image.manifest.v1+json sha256:0a complete (2/2) 17.0 MiB/17.0 MiB true\n", false},
		{"none", header, false},
		{"nothing", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := usable(c.output, ref); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func FuzzUsable(f *testing.F) {
	f.Add(header+ref+" t d complete (2/2) 1/1 true\n", ref)
	f.Add("\n\n", "")
	f.Fuzz(func(t *testing.T, output, ref string) {
		if usable(output, ref) && !strings.Contains(output, "complete") {
			t.Errorf("usable without being complete: %q", output)
		}
	})
}

func TestImportEndsWhenContainerdStopsReading(t *testing.T) {
	failed := errors.New("no space left on device")
	node := Node(func(_ context.Context, stdin io.Reader, _ ...string) (string, error) {
		_, err := io.ReadFull(stdin, make([]byte, 10))
		return "", errors.Join(failed, err)
	})
	endless := func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return err
			}
		}
	}
	if err := node.Import(t.Context(), endless); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

func TestImportReportsWhatCannotBeWritten(t *testing.T) {
	broken := errors.New("the binary is gone")
	node := Node(func(_ context.Context, stdin io.Reader, _ ...string) (string, error) {
		_, _ = io.Copy(io.Discard, stdin) // as if the archive had simply ended
		return "", nil
	})
	if err := node.Import(t.Context(), func(io.Writer) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

package cli

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestContextFileIsPrivateAndComplete(t *testing.T) {
	path := filepath.Join(t.TempDir(), "harmony-fleet", "context.toml")
	want := contextFile{Server: "nats://127.0.0.1:1", Token: "abc", Up: &upMark{PID: os.Getpid(), ID: "me"}}
	if err := want.claim(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	got, err := readContext(path)
	if err != nil || got.Server != want.Server || got.Token != want.Token || *got.Up != *want.Up {
		t.Errorf("read %#v, %v", got, err)
	}
	if got.stale() {
		t.Error("the file of a living process is called stale")
	}
	// Overwriting leaves one file and nothing beside it.
	if err := want.write(path); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left beside the file: %v", left)
	}
	// Only its own run removes it.
	if err := removeContext(path, "somebody else"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the file of another run was removed")
	}
	if err := removeContext(path, "me"); err != nil {
		t.Fatal(err)
	}
	if c, err := readContext(path); c != nil || err != nil {
		t.Errorf("after removal: %v, %v", c, err)
	}
}

// TestClaimTakesOnlyWhatNobodyUses: the file of a fleet that runs and one that was
// written by hand stay, and what a dead fleet left is replaced.
func TestClaimTakesOnlyWhatNobodyUses(t *testing.T) {
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	alive, listening := os.Getpid(), "nats://"+there.Addr().String()
	const nobody, ours = "nats://127.0.0.1:1", "nats://127.0.0.1:2"
	for name, c := range map[string]struct {
		before contextFile
		kept   string // part of why; empty: it is replaced
	}{
		"of a fleet that runs":               {contextFile{Server: listening, Up: &upMark{PID: alive, ID: "other"}}, listening},
		"written by hand":                    {contextFile{Server: nobody}, "by hand"},
		"of a process that is gone":          {contextFile{Server: listening, Up: &upMark{PID: gone.Process.Pid, ID: "other"}}, ""},
		"of a process number that is reused": {contextFile{Server: nobody, Up: &upMark{PID: alive, ID: "other"}}, ""},
		"of an address that is now ours":     {contextFile{Server: ours, Up: &upMark{PID: alive, ID: "other"}}, ""},
		"our own":                            {contextFile{Server: ours, Up: &upMark{PID: alive, ID: "mine"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "context.toml")
			c.before.Token = "before"
			if err := c.before.write(path); err != nil {
				t.Fatal(err)
			}
			err := contextFile{Server: ours, Token: "after", Up: &upMark{PID: alive, ID: "mine"}}.claim(path)
			got, readErr := readContext(path)
			if readErr != nil {
				t.Fatal(readErr)
			}
			var kept keptError
			switch {
			case c.kept == "" && (err != nil || got.Token != "after"):
				t.Errorf("not replaced: %v", err)
			case c.kept != "" && (!errors.As(err, &kept) || !strings.Contains(err.Error(), c.kept) || !strings.Contains(err.Error(), path) || got.Token != "before"):
				t.Errorf("want it kept, with %q; got %v", c.kept, err)
			}
		})
	}
}

func TestContextFileFaultsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"unknown key":          {"server = 'x'\ntokn = 'secret'\n", 0o600, `line 2: unknown key "tokn"`},
		"unknown key in table": {"server = 'x'\n[up]\npid = 1\nboss = 'secret'\n", 0o600, `unknown key "up.boss"`},
		"not TOML":             {"server = secret\n", 0o600, "line 1"},
		"wrong type":           {"server = 'x'\n[up]\npid = 'secret'\n", 0o600, "line 3"},
		"no server":            {"token = 'secret'\n", 0o600, "has no server"},
		"readable by others":   {"server = 'x'\n", 0o644, "chmod 600"},
		"huge":                 {strings.Repeat("#secret\n", 10000), 0o600, "not a context file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "context.toml")
			if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := readContext(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != 2 {
				t.Fatalf("got %v (exit %d), want %q", err, exitCode(err), c.want)
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error quotes the file or has several lines: %v", err)
			}
		})
	}
}

func TestStaleContextFileIsSaid(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	c := &contextFile{Server: "nats://127.0.0.1:1", Up: &upMark{PID: gone.Process.Pid, ID: "x"}, path: "/the/file"}
	err := c.explain(os.ErrDeadlineExceeded)
	if err == nil || !strings.Contains(err.Error(), "no longer runs") || !strings.Contains(err.Error(), "/the/file") {
		t.Errorf("got %v", err)
	}
	if c.explain(nil) != nil {
		t.Error("a connection that works is an error")
	}
	c.Up.PID = os.Getpid()
	if got := c.explain(os.ErrDeadlineExceeded); got != os.ErrDeadlineExceeded {
		t.Errorf("of a living process: %v", got)
	}
}

func FuzzParseContext(f *testing.F) {
	f.Add([]byte("server = 'nats://127.0.0.1:4222'\ntoken = 't'\n[up]\npid = 12\nid = 'x'\n"))
	f.Add([]byte("server = 1\nx = [[[["))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseContext(raw)
		if (err == nil) == (c == nil) {
			t.Errorf("parseContext gives %v and %v", c, err)
		}
	})
}

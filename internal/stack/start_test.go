package stack

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harmony-fleet/fleet/internal/access"
)

// tempDirs gives the test a temporary directory of its own and what is in it.
func tempDirs(t *testing.T) func() []string {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	return func() []string {
		left, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		left := tempDirs(t)
		s := up(t, Options{Devices: 3, Auth: auth})
		if len(left()) != 1 {
			t.Errorf("while it runs there is %v", left())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if len(left()) != 0 {
			t.Errorf("left: %v", left())
		}
		if err := s.Close(); err != nil {
			t.Errorf("the second close: %v", err)
		}
	})
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "secrets.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	badSeeds := t.TempDir()
	if err := os.MkdirAll(filepath.Join(badSeeds, "callout"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"issuer.seed", "xkey.seed"} {
		if err := os.WriteFile(filepath.Join(badSeeds, "callout", name), []byte("not a seed"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	badKey := t.TempDir()
	if err := os.MkdirAll(filepath.Join(badKey, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(badKey, "keys", "device-vm-device-00.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		opts Options
		want string
	}{
		"port in use":            {Options{Devices: 1, Port: taken.Addr().(*net.TCPAddr).Port}, "choose another"},
		"directory below a file": {Options{Devices: 1, Port: AnyPort, DataDir: filepath.Join(file, "x")}, "cannot be made"},
		"damaged secrets":        {Options{Devices: 1, Port: AnyPort, DataDir: damaged}, "is damaged"},
		"damaged seeds":          {Options{Devices: 1, Port: AnyPort, DataDir: badSeeds}, "seed"},
		"damaged machine key":    {Options{Devices: 1, Port: AnyPort, DataDir: badKey}, "key"},
		"unknown mode":           {Options{Devices: 1, Auth: "kerberos"}, "kerberos"},
		"bad prefix":             {Options{Devices: 1, DevicePrefix: "VM."}, "device id"},
		"too many":               {Options{Devices: -1}, "number"},
	} {
		t.Run(name, func(t *testing.T) {
			left := tempDirs(t)
			s, err := Start(t.Context(), c.opts)
			if err == nil {
				_ = s.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if len(left()) != 0 {
				t.Errorf("left: %v", left())
			}
		})
	}
}

func TestOneFleetPerDataDirectory(t *testing.T) {
	dir := t.TempDir()
	up(t, Options{DataDir: dir, Auth: UserPass})
	s, err := Start(t.Context(), Options{DataDir: dir, Auth: UserPass, Port: AnyPort})
	if err == nil {
		_ = s.Close()
		t.Fatal("two fleets on one directory")
	}
	if !strings.Contains(err.Error(), "in use by another fleet") {
		t.Errorf("got %v", err)
	}
}

func TestStateSurvivesInTheDataDirectory(t *testing.T) {
	inEachMode(t, func(t *testing.T, auth Auth) {
		dir := t.TempDir()
		s := up(t, Options{Devices: 1, DataDir: dir, Auth: auth})
		before := s.InboxPrefix()
		_, password := s.UserPassword(access.Ops)
		data, err := s.DataConn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := data.Request("$KV.device-labels.vm-device-00", []byte(`{"schema":1,"labels":{"site":"lab"}}`), patience); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = up(t, Options{Devices: 1, DataDir: dir, Auth: auth})
		if s.InboxPrefix() != before {
			t.Errorf("the admin's inbox prefix was %s and is %s", before, s.InboxPrefix())
		}
		if _, again := s.UserPassword(access.Ops); again != password {
			t.Error("the password changed")
		}
		pings(t, s.Client(), "vm-device-00")
		d, err := s.Client().Device(t.Context(), "vm-device-00")
		if err != nil || d.Labels["site"] != "lab" {
			t.Errorf("labels %v, %v", d.Labels, err)
		}
		_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if info, err := e.Info(); err == nil && !e.IsDir() && info.Mode().Perm()&0o077 != 0 && !strings.Contains(path, "/nats/") {
				t.Errorf("%s can be read by others: %v", path, info.Mode())
			}
			return nil
		})
	})
}

func TestDirectoriesOfKilledFleetsAreSwept(t *testing.T) {
	left := tempDirs(t)
	running := up(t, Options{Auth: UserPass})
	past := time.Now().Add(-time.Hour)
	make := func(name string, age time.Time) string {
		dir := filepath.Join(os.TempDir(), name)
		if err := os.MkdirAll(filepath.Join(dir, "nats"), 0o700); err != nil {
			t.Fatal(err)
		}
		lock := filepath.Join(dir, "lock")
		if err := os.WriteFile(lock, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(lock, age, age); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	killed, starting, other := make("fleet-up-1", past), make("fleet-up-2", time.Now()), make("something-else", past)
	if err := os.Chtimes(filepath.Join(running.DataDir(), "lock"), past, past); err != nil {
		t.Fatal(err)
	}
	s := up(t, Options{Auth: UserPass})
	now := left()
	for dir, want := range map[string]bool{killed: false, starting: true, other: true, running.DataDir(): true, s.DataDir(): true} {
		if slices.Contains(now, dir) != want {
			t.Errorf("%s: there is %v", dir, now)
		}
	}
}

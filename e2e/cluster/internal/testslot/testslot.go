//go:build unix

// Package testslot gives each run of tests a local cluster beside the one that people
// use, and beside those of other runs on the same machine:
//
//	s := testslot.Take()
//	provider := local.New(local.Options{Dir: s.Dir, Name: s.Name, Network: s.Network})
package testslot

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/harmony-fleet/fleet/e2e/internal/filelock"
)

// Variable hands a slot on to a process that a test starts: NAME=Slot.Number.
const Variable = "FLEET_TEST_SLOT"

// slots are how many runs a machine can have at once.
const slots = 16

// Slot is what tells one cluster from the others.
type Slot struct {
	Number  int
	Dir     string
	Name    string
	Network netip.Prefix
}

// locks is the same for all runs, whatever directory for temporary files each has:
// with two of them, two runs would take the same slot.
const locks = "/run/lock"

func lockOf(slot int) string { return filepath.Join(locks, fmt.Sprintf("harmony-fleet-test-%d", slot)) }

var held *os.File // kept open, or the lock goes

// Take returns the slot of this process, always the same one. It is this process's
// until Release, or its end. Take panics where there is none left.
var Take = sync.OnceValue(func() Slot {
	n, err := number()
	if err != nil {
		panic("testslot: " + err.Error())
	}
	return Slot{
		Number:  n,
		Dir:     fmt.Sprintf("/var/lib/harmony-fleet/test-%d", n),
		Name:    fmt.Sprintf("fleet-t%d", n),
		Network: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 220+n)),
	}
})

func number() (int, error) {
	if given := os.Getenv(Variable); given != "" {
		return strconv.Atoi(given)
	}
	return take(slots, lockOf)
}

// take locks the first file that nobody holds. Those that runs have left which were
// killed it removes.
func take(slots int, lockOf func(int) string) (int, error) {
	taken := -1
	for n := range slots {
		if _, err := os.Stat(lockOf(n)); err != nil && taken >= 0 {
			continue // no file, and none is wanted
		}
		file, err := filelock.Open(lockOf(n))
		switch {
		case errors.Is(err, filelock.ErrLocked):
		case err != nil:
			return 0, err
		case taken < 0:
			taken, held = n, file
		default:
			release(file)
		}
	}
	if taken < 0 {
		return 0, fmt.Errorf("%d runs of these tests are under way: try again when one has ended", slots)
	}
	return taken, nil
}

// Release removes the lock's file at the end of a run. Where a run is killed it stays,
// empty, until another one takes a slot.
func Release() {
	if held != nil {
		release(held)
	}
}

func release(lock *os.File) {
	_ = os.Remove(lock.Name()) // an empty file at worst
	lock.Close()
}

package attack

import (
	"fmt"
	"testing"

	"github.com/harmony-fleet/fleet/internal/doctable"
)

func TestNoAttackSucceeds(t *testing.T) {
	for _, n := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d servers", n), func(t *testing.T) {
			a := newArena(t, n, variant{})
			for _, row := range append(deviceAttacks, peopleAttacks...) {
				t.Run(row.by+": "+row.what, func(t *testing.T) {
					for _, problem := range a.try(t, row) {
						t.Error(problem)
					}
				})
			}
		})
	}
}

// try makes the attack from every server and tells what it achieved.
func (a *arena) try(t *testing.T, row attack) (problems []string) {
	t.Helper()
	outer := a.t
	a.t = t
	defer func() { a.t = outer }()
	for i := range a.servers {
		a.at = i
		before := a.snapshot()
		a.drain()
		row.run(a)
		a.settle()
		for _, r := range a.drain() {
			user, accepted := caller(r.msg)
			switch {
			case row.mayReach == nil || !row.mayReach(r):
				problems = append(problems, fmt.Sprintf("from server %d: reached %s", i, r))
			case accepted && user != "viewer":
				problems = append(problems, fmt.Sprintf("from server %d: d2 would take it as coming from %q: %s", i, user, r))
			}
		}
		for _, d := range difference(before, a.snapshot()) {
			problems = append(problems, fmt.Sprintf("from server %d: changed %s", i, d))
		}
	}
	return problems
}

// The attack table of docs/security.md is made from the rows above.
func TestDocsCarryTheTable(t *testing.T) {
	table := doctable.Table{
		File: "../../docs/security.md", Name: "attacks", Head: []string{"who", "tries", "expected refusal"},
		Again: "go test ./internal/attack -update",
	}
	for _, row := range append(deviceAttacks, peopleAttacks...) {
		table.Rows = append(table.Rows, []string{row.by, row.what, row.holds})
	}
	doctable.Check(t, table, *update)
}

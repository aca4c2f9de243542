package attack

import (
	"bytes"
	"fmt"
	"os"
	"testing"
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
	const path, begin, end = "../../docs/security.md", "<!-- attacks: begin -->\n", "<!-- attacks: end -->"
	var table bytes.Buffer
	table.WriteString("\n| who | tries | expected refusal |\n| --- | --- | --- |\n")
	for _, row := range append(deviceAttacks, peopleAttacks...) {
		fmt.Fprintf(&table, "| %s | %s | %s |\n", row.by, row.what, row.holds)
	}
	table.WriteString("\n")
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(doc, []byte(begin))
	_, tail, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no %q … %q", path, begin, end)
	}
	want := bytes.Join([][]byte{head, []byte(begin), table.Bytes(), []byte(end), tail}, nil)
	if bytes.Equal(doc, want) {
		return
	}
	if !*update {
		t.Fatalf("the attack table in %s is not the tests'; run go test ./internal/attack -update and read the change", path)
	}
	if err := os.WriteFile(path, want, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Package doctable keeps a table of the documentation equal to the rows that tests
// execute. It stands in the document between two marks:
//
//	<!-- attacks: begin -->
//	<!-- attacks: end -->
//
//	doctable.Check(t, doctable.Table{File: "../../docs/security.md", Name: "attacks", Head: []string{"who", "tries"}, Rows: rows}, *update)
package doctable

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// Table is one table of one document.
type Table struct {
	File string // the document, from the test's package
	Name string // in the marks
	Head []string
	Rows [][]string
	// Again is the command that writes the table.
	Again string
}

// Check fails the test where the document has another table, or with update writes
// the table into it.
func Check(t testing.TB, table Table, update bool) {
	t.Helper()
	doc, err := os.ReadFile(table.File)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := []byte("<!-- "+table.Name+": begin -->\n"), []byte("<!-- "+table.Name+": end -->")
	head, rest, ok := bytes.Cut(doc, begin)
	_, tail, ok2 := bytes.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q … %q", table.File, begin, end)
	}
	want := bytes.Join([][]byte{head, begin, table.markdown(), end, tail}, nil)
	if bytes.Equal(doc, want) {
		return
	}
	if !update {
		t.Fatalf("the table %q in %s is not the tests'; run %s and read the change", table.Name, table.File, table.Again)
	}
	if err := os.WriteFile(table.File, want, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (t Table) markdown() []byte {
	var out bytes.Buffer
	line := func(cells []string) { out.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	out.WriteString("\n")
	line(t.Head)
	out.WriteString("|" + strings.Repeat(" --- |", len(t.Head)) + "\n")
	for _, row := range t.Rows {
		line(row)
	}
	out.WriteString("\n")
	return out.Bytes()
}

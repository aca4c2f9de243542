// Package grafana has the dashboard of all components, and the test that what it shows
// exists.
package grafana

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	_ "sigs.k8s.io/controller-runtime/pkg/controller" // which registers its metrics
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ H, W, X, Y int }
	Targets []struct{ RefID, Expr, LegendFormat string }
	Panels  []panel
}

func dashboard(t *testing.T) (list []panel) {
	t.Helper()
	raw, err := os.ReadFile("harmony-fleet.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Panels []panel }
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		list = append(append(list, p), p.Panels...)
	}
	return list
}

// ownMetrics are the names that the programs of this module give their metrics.
func ownMetrics(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	name := regexp.MustCompile(`^fleet_[a-z_]+$`)
	err := filepath.WalkDir("../../internal", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil && name.MatchString(s) {
					names[s] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// libraryMetrics are those of controller-runtime, and of Go's runtime and process.
func libraryMetrics(t *testing.T) map[string]bool {
	t.Helper()
	registry, ok := metrics.Registry.(prometheus.Collector)
	if !ok {
		t.Fatal("controller-runtime's registry does not describe itself")
	}
	names := map[string]bool{}
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, c := range []prometheus.Collector{registry, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		descriptions := make(chan *prometheus.Desc)
		go func() {
			defer close(descriptions)
			c.Describe(descriptions)
		}()
		for d := range descriptions {
			names[name.FindStringSubmatch(d.String())[1]] = true
		}
	}
	return names
}

func TestEveryMetricOfTheDashboardExists(t *testing.T) {
	known := ownMetrics(t)
	if !known["fleet_callout_ready"] || !known["fleet_operator_leader"] {
		t.Fatalf("known are %v", slices.Sorted(maps.Keys(known)))
	}
	shown := map[string]bool{}
	library := libraryMetrics(t)
	metric := regexp.MustCompile(`([a-z][a-z0-9_]+)\{`)
	for _, p := range dashboard(t) {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			found := metric.FindAllStringSubmatch(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("panel %q: no metric in %s", p.Title, target.Expr)
			}
			for _, m := range found {
				name := strings.TrimSuffix(m[1], "_bucket")
				shown[name] = true
				if !known[name] && !library[name] {
					t.Errorf("panel %q: there is no metric %s", p.Title, name)
				}
			}
		}
	}
	for name := range known {
		if strings.HasPrefix(name, "fleet_operator_") && !shown[name] {
			t.Errorf("%s is in no panel", name)
		}
	}
}

func TestPanelsHaveRoomAndIdsOfTheirOwn(t *testing.T) {
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range dashboard(t) {
		if ids[p.ID] {
			t.Errorf("id %d twice", p.ID)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" || at[0] >= 24 {
					t.Fatalf("%q lies on %q at %v", p.Title, other, at)
				}
				taken[at] = p.Title
			}
		}
	}
}

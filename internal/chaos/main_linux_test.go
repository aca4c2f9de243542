package chaos

import (
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harmony-fleet/fleet/internal/doctable"
)

// scenario is one row of the table.
type scenario struct {
	name   string
	breaks string // what is broken
	holds  string // what holds
	root   bool   // it needs root: namespaces, mounts, packet filters
	run    func(t *testing.T)
}

// scenarios is the fault suite, in the order in which it runs.
var scenarios = []scenario{
	{
		name:   "broker restart",
		breaks: "the broker of 10,000 agents is killed and comes back, callout and TLS in between",
		holds:  "every agent takes commands again, by its own token, within 30 s of the broker's return; none gives up",
		run:    brokerRestart,
	}, {
		name:   "cluster node killed",
		breaks: "one of three brokers, each in a network namespace of its own, is killed",
		holds:  "the two others serve: every agent answers again, desired state is written and reaches every device; the third joins again",
		root:   true, run: clusterNodeKilled,
	}, {
		name:   "cluster partition",
		breaks: "packets between one of the three brokers and the two others are dropped, while clients reach all of them",
		holds:  "the majority writes desired state; a device behind the cut is timeout, then offline, never a guess; after the cut it gets what was written meanwhile without waiting for the next look by schedule",
		root:   true, run: clusterPartition,
	}, {
		name:   "callout",
		breaks: "the callout is slow (0.5 s each way), silent, dead, and back",
		holds:  "open connections go on throughout; agents that start meanwhile get in when it is slow, and once it is back; nobody gets in without it",
		run:    calloutFaults,
	}, {
		name:   "issuer",
		breaks: "the issuer is slow, silent, broken (500), dead, and back, while tokens of 4 s run out",
		holds:  "devices with a token answer; those whose token ran out meanwhile come back by themselves; a silent issuer holds nobody up who has a token",
		run:    issuerFaults,
	}, {
		name:   "half-dead TCP",
		breaks: "the network between agent, caller and broker stops forwarding without an end of the connections",
		holds:  "caller and agent notice within three ping intervals (45 to 60 s in production) and come back; every command meanwhile ends in time with its one outcome",
		run:    halfDead,
	}, {
		name:   "loss and latency",
		breaks: "200 ms of latency on the way to the broker, and 3 % of its packets lost",
		holds:  "no command is lost or runs twice; output of exec arrives whole",
		root:   true, run: lossAndLatency,
	}, {
		name:   "broker disk full",
		breaks: "the file system under JetStream is full",
		holds:  "ping and exec go on; a write of desired state fails; audit records wait on the devices and are all stored, chain whole, once there is room and the broker was started again",
		root:   true, run: brokerDiskFull,
	}, {
		name:   "agent disk full",
		breaks: "the file system under the agent's state is full",
		holds:  "exec is refused as busy and does not run, since it cannot be noted; ping goes on; all works again once there is room, and the audit chain says what it lost",
		root:   true, run: agentDiskFull,
	}, {
		name:   "agent killed",
		breaks: "kill -9 of the agent at random moments under a stream of execs that callers repeat until they know",
		holds:  "every request has exactly one outcome; none ran twice, none after its deadline, none that was answered with a refusal; the audit chain is whole",
		root:   true, run: agentKilled,
	},
}

// full tells whether the suite runs at the size that docs/performance.md
// publishes.
var full = os.Getenv("FLEET_CHAOS") == "full"

// size is n at full size, else the slice's.
func size[N int | time.Duration](n, slice N) N {
	if full {
		return n
	}
	return slice
}

// patience bounds each wait that has no limit of its own; far more than it takes.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(brokerMain())
	}
	if os.Geteuid() == 0 {
		if os.Getenv(isolatedVariable) == "" {
			code, err := isolate()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
			os.Exit(code)
		}
		if err := configure(""); err != nil {
			fmt.Fprintln(os.Stderr, "bring loopback up:", err)
			os.Exit(1)
		}
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the issuer's provider library logs there
	goleak.VerifyTestMain(m)
}

func TestScenarios(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			if why := missing(s); why != "" {
				if full || os.Getenv("CI") == "true" {
					t.Fatalf("cannot run here: %s", why)
				}
				t.Skipf("cannot run here: %s", why)
			}
			begin := time.Now()
			s.run(t)
			t.Logf("%s: %v", s.name, time.Since(begin).Round(100*time.Millisecond))
		})
	}
}

// random is a source of randomness whose seed is printed, and set by
// FLEET_CHAOS_SEED.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("FLEET_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FLEET_CHAOS_SEED: %v", err)
		}
	}
	t.Logf("FLEET_CHAOS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

var update = flag.Bool("update", false, "write the table of scenarios into docs/faults.md")

// The table of docs/faults.md is made from the rows above.
func TestDocsCarryTheTable(t *testing.T) {
	table := doctable.Table{
		File: "../../docs/faults.md", Name: "faults", Head: []string{"scenario", "what breaks", "what holds"},
		Again: "go test ./internal/chaos -update",
	}
	for _, s := range scenarios {
		table.Rows = append(table.Rows, []string{s.name, s.breaks, s.holds})
	}
	doctable.Check(t, table, *update)
}

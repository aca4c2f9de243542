# `make up` brings a whole fleet up on this machine; `make test` passes the tests.
# Both need Go, git and make; `make test` installs on Debian, as root, what else it wants.

GO       ?= go
FUZZTIME ?= 3s
BIN      := bin

.PHONY: all up build generate test lint check fuzz bench bench-e2e chaos smoke clean

all: build

up: ## run a fleet on this machine until Ctrl-C
	$(GO) run ./cmd/fleet up

build: ## every binary, static, into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/ ./cmd/...

test: ## all tests; those that need a cluster too, where the machine can have one
	@GO='$(GO)' tools/test

generate: ## deep copies and resource definitions, from api/
	$(GO) generate ./api/...

lint: ## formatting, vet, staticcheck, tidy modules, generated files
	@test -z "$$(gofmt -l .)" || { echo 'not gofmt-ed:'; gofmt -l .; exit 1; }
	$(GO) mod tidy -diff
	cd tools && $(GO) mod tidy -diff
	cd deploy/chart/test && $(GO) mod tidy -diff && $(GO) vet ./...
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	@sum() { cat api/v1alpha1/zz_generated.*.go deploy/crds/*.yaml | sha256sum; }; before=$$(sum); \
	$(GO) generate ./api/... && [ "$$before" = "$$(sum)" ] || \
	{ echo 'api/ and deploy/crds/ did not fit each other; now they do: commit them'; exit 1; }

fuzz: ## each fuzz target for FUZZTIME
	@set -e; for pkg in $$($(GO) list ./...); do \
		dir=$$($(GO) list -f '{{.Dir}}' $$pkg); \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | cut -d' ' -f2); do \
			echo "fuzz $$pkg $$target"; \
			$(GO) test $$pkg -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME); \
		done; \
	done

# With a configuration directory of its own: `fleet up` would replace the context
# file of one that runs on this machine.
smoke: ## a fleet up and pinged, both ways to sign in
	CGO_ENABLED=0 $(GO) build -o $(BIN)/ ./cmd/fleet
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	for auth in userpass callout; do \
		echo "fleet up --auth $$auth"; \
		XDG_CONFIG_HOME=$$dir XDG_STATE_HOME=$$dir $(BIN)/fleet up --port 0 --auth $$auth --exit-after-ping; \
	done

bench: ## the table of docs/performance.md
	$(GO) run ./cmd/fleet bench

# Without the race detector, which the slice in `make test` has. FLEET_CHAOS_SEED=N
# repeats a run's randomness.
chaos: ## the fault suite at full size, at most 10 minutes; needs root on Linux
	FLEET_CHAOS=full $(GO) test -v -count 1 -timeout 10m -run 'TestScenarios' ./internal/chaos

bench-e2e: ## the rows of docs/performance.md that need a cluster
	$(GO) run ./cmd/fleet cluster up
	HARMONY_FLEET_E2E=1 $(GO) test -run '^$$' -bench . -benchtime 7x -timeout 30m ./e2e

clean:
	rm -rf $(BIN)

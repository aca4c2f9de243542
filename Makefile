# `make up` brings a whole fleet up on this machine; `make test` passes the tests.
# Both need Go, git and make; `make test` installs on Debian, as root, what else it wants.

GO       ?= go
FUZZTIME ?= 3s
BIN      := bin

# The race detector links with a C compiler. Where there is none and none can be
# installed the tests run without it, and say so.
CC_FOUND  = $(shell command -v gcc >/dev/null 2>&1 && echo yes)
RACE      = $(if $(CC_FOUND),-race,)

.PHONY: all up build test test-deps lint check fuzz bench smoke clean

all: build

up: ## run a fleet on this machine until Ctrl-C
	$(GO) run ./cmd/fleet up

build: ## every binary, static, into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/ ./cmd/...

test: test-deps ## all tests
	$(if $(RACE),,@echo 'make test: no C compiler here: the tests run WITHOUT the race detector')
	CGO_ENABLED=$(if $(RACE),1,0) $(GO) test $(RACE) -timeout 15m ./...

# Without a network the compiler cannot be had, and the tests do without it.
test-deps:
	@if ! command -v gcc >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev; } || true; \
	fi

lint: ## formatting, vet, staticcheck, tidy modules
	@test -z "$$(gofmt -l .)" || { echo 'not gofmt-ed:'; gofmt -l .; exit 1; }
	$(GO) mod tidy -diff
	cd tools && $(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

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

clean:
	rm -rf $(BIN)

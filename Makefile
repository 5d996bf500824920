# The only entry point for building and checking. `make` lists the targets.

GO ?= go
FUZZTIME ?= 20s
BENCHFLAGS ?=
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@latest

# ./... leaves out testdata; the packages there are named.
PACKAGES = ./... ./testdata ./testdata/fixtures ./testdata/emulate/guest ./testdata/pruned

.DEFAULT_GOAL := help

## help: list the targets
help:
	@grep -hE '^## ' $(MAKEFILE_LIST) | sed 's/^## /  /'

## build: the program, as ./winnow
build:
	CGO_ENABLED=0 $(GO) build -trimpath -o winnow ./cmd/winnow

## demo: build, then convert and measure the built-in model
demo: build
	./winnow demo

## test: all tests that need nothing but this repository
test:
	$(GO) test $(PACKAGES)

## test-noasm: the tests without assembly
test-noasm:
	$(GO) test -timeout 20m -tags noasm $(PACKAGES)

## test-race: the shorter tests under the race detector (needs a C compiler)
test-race:
	CGO_ENABLED=1 $(GO) test -timeout 20m -race -short $(PACKAGES)

## test-v3: the tests of byte-exact code with fused multiply-add available
test-v3:
	GOAMD64=v3 $(GO) test ./quant/... ./engine/... ./convert/...

## test-arm64: the byte-exact code as arm64 compiles it (needs qemu-aarch64-static)
test-arm64:
	GOARCH=arm64 CGO_ENABLED=0 $(GO) test -short -exec qemu-aarch64-static ./quant/... ./formats/dtype

## test-avx512: the AVX-512 kernels on an emulated processor (needs bochs, see testdata/emulate/run.sh)
test-avx512:
	testdata/emulate/run.sh

## cover: line coverage per package
cover:
	$(GO) test -cover ./formats/... ./quant/... ./convert/... ./engine/... ./verify/...

## fuzz-short: every fuzz target for FUZZTIME (default 20s). On a busy machine Go ends
## a run without a finding as "context deadline exceeded" (golang/go#75804): once more
fuzz-short:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$f"; run() { $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg 2>&1; }; \
	    out=$$(run) || case "$$out" in \
	      *"Failing input"*) echo "$$out"; exit 1;; \
	      *"context deadline exceeded"*) run;; \
	      *) echo "$$out"; exit 1;; \
	    esac; \
	  done; done

## bench: benchmarks
bench:
	$(GO) test -run '^$$' -bench . -benchtime 1s ./...

## bench-peers: winnow beside llama.cpp and OpenBLAS, which it builds (cmake, C++, pip; libopenblas-dev)
bench-peers: build
	$(GO) run ./cmd/bench-peers -winnow ./winnow -oracle "$$(testdata/oracle/build.sh)" $(BENCHFLAGS)

## prune-table: the table of pruning by code and by English, written into the README
prune-table: build
	$(GO) run ./cmd/prune-table -winnow ./winnow

## vet: go vet for both architectures and formatting
vet:
	$(GO) vet $(PACKAGES)
	GOARCH=arm64 CGO_ENABLED=0 $(GO) vet $(PACKAGES)
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }

## lint: vet and staticcheck
lint: vet
	$(GO) run $(STATICCHECK) $(PACKAGES)

## golangci: the import rules and linters of .golangci.yml (also checked by a Go test)
golangci:
	$(GO) run $(GOLANGCI) run

## generate: make generated files anew
generate:
	$(GO) generate ./...

## check: everything a change must pass
check: build lint generate test test-noasm test-race test-v3
	@$(MAKE) fuzz-short FUZZTIME=3s
	@git diff --exit-code --stat -- . || { echo "generated files are not up to date"; exit 1; }

.PHONY: help build demo test test-noasm test-race test-v3 test-arm64 test-avx512 cover fuzz-short bench bench-peers prune-table vet lint golangci generate check

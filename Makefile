# A fresh Debian machine needs Go and make. Targets that need more install it as root: .ci/deps, and the test cluster
# for itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail

GO      ?= go
ARCH    ?= $(shell $(GO) env GOARCH)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE   ?= localhost/spillway:dev
NODE    ?= host

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
CLUSTERCTL  := $(GO) run ./test/cluster/clusterctl
# Reads go test -json, and fails where a test is skipped that the list does not name.
SKIPS       := $(GO) run ./test/skips .ci/skips
# Built on first use, which takes some minutes.
KUBECTL     := $(GO) -C test/cluster/parts/kubernetes tool kubectl

# Static, and the same bytes for the same sources wherever they lie.
BUILD := CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the static binary bin/spillway
	GOARCH=$(ARCH) $(BUILD) -o bin/spillway ./cmd/spillway

.PHONY: image
image: ## write the image as an OCI archive, out/spillway-image.tar, without a daemon (ARCH=amd64|arm64)
	@mkdir -p out
	GOARCH=$(ARCH) $(BUILD) -o out/spillway-$(ARCH) ./cmd/spillway
	$(GO) run ./deploy/image/build --ref $(IMAGE) --arch $(ARCH) --file /spillway=out/spillway-$(ARCH) \
		--user 0 --entrypoint /spillway --cmd agent --label org.opencontainers.image.version=$(VERSION) \
		-o out/spillway-image.tar

.PHONY: test
test: race plain fuzz e2e ## unit tests under the race detector, with the tests on this machine's kernel, the parsers' fuzzers, and the end-to-end cases on a real cluster

.PHONY: unit
unit: ## the unit tests without the race detector, for work on the code; skips are not counted
	$(GO) test ./...

.PHONY: race
race: ## the same under the race detector; a skip that .ci/skips does not list is a failure
	@.ci/deps race
	CGO_ENABLED=1 $(GO) test -json -race ./... | $(SKIPS)

.PHONY: plain
plain: ## without the race detector only the packages that leave something out under it
	$(GO) test -json $$(grep -rl --include='*_test.go' '"spillway/test/race"' . | xargs -n1 dirname | sort -u) | $(SKIPS)

.PHONY: fuzz
fuzz: ## the fuzzers of the parsers that read the kernel, a moment each
	@.ci/fuzz 2s ./cgroup ./ebpf/...

.PHONY: e2e
e2e: ## end-to-end cases: a real runtime, then a real cluster with the agent from deploy/
	@.ci/deps cri
	programs=$$($(CLUSTERCTL) build) && SPILLWAY_CONTAINERD=$$programs $(GO) test -tags=e2e -count=1 -run=Containerd ./cri
	$(GO) test -tags=e2e -count=1 -v -timeout=160m ./test/e2e

.PHONY: e2e-parts
e2e-parts: ## single parts on real clusters: the harness itself, the Kubernetes client
	$(GO) test -tags=e2e -count=1 -p=1 -timeout=60m $$(git grep -l '^//go:build e2e' -- '*_test.go' ':(exclude,glob)test/e2e/*.go' ':!cri' | xargs -n1 dirname | sort -u | sed 's,^,./,')

.PHONY: chaos
chaos: ## faults beside a leak, on a real cluster, each with its invariants, six of them again without the guard that upholds them (SPILLWAY_CHAOS_SEED=1, SPILLWAY_CHAOS_RUNS=1)
	$(GO) test -tags=chaos -count=1 -v -timeout=150m ./test/chaos

.PHONY: decisions
decisions: ## what is decided under single loads, modelled and recorded, in a population of 2000 drawn loads, and for recorded applications: prints three tables (about four minutes)
	@$(GO) run ./test/decisions

.PHONY: kernels
kernels: ## the tests that read the kernel, in virtual machines: cgroup v1 and v2 on Debian's kernels, and the systemd units (half an hour)
	$(GO) test -tags=vm -count=1 -v -timeout=60m ./test/vm

.PHONY: verify
verify: ## the longer set: all of the above, lint, generated files, fuzzers, both images; prints a table
	@.ci/deps race bpf
	@.ci/verify $(STEPS)

.PHONY: bench
bench: build ## what reading the kernel costs, as ratios in one run, and how long a decision takes to the API server and an OOM kill to its record; with COST=10m also what a running agent does
	$(GO) -C test/bench run .
	SPILLWAY_LATENCY=200 $(GO) -C agent test -count=1 -timeout=30m -run='^TestDecisionLatency$$'
	$(GO) -C agent test -count=1 -run='^$$' -bench=OOMKillToRecord -benchtime=300x
	@if [ -n "$(COST)" ]; then $(GO) -C test/bench run . -cost $(COST) -agent $(CURDIR)/bin/spillway; fi

.PHONY: demo
demo: ## a pod leaks: once with the kubelet alone, once with Spillway, side by side (NODE=host|v2)
	$(GO) run ./test/demo --node $(NODE)

.PHONY: lint
lint: ## gofmt, go vet of all modules, staticcheck
	@files=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
		if [ -n "$$files" ]; then echo "not formatted:"; echo "$$files"; exit 1; fi
	@set -e; for mod in $$(git ls-files --cached --others --exclude-standard '*go.mod'); do \
		dir=$$(dirname $$mod); \
		if [ -n "$$(cd $$dir && $(GO) list -tags=e2e,vm,chaos ./... 2>/dev/null)" ]; then \
			echo "vet $$dir"; (cd $$dir && $(GO) vet -tags=e2e,vm,chaos ./...); \
		fi; \
	done
	$(GO) run $(STATICCHECK) -tags=e2e,vm,chaos ./...

.PHONY: manifests
manifests: ## write deploy/spillway.yaml from deploy/base, and the operator's rules
	@mkdir -p out
	{ echo "# Spillway in observe mode on every Linux node. Written by make manifests from deploy/base, where the reasons stand."; \
		$(KUBECTL) kustomize $(CURDIR)/deploy/base; } >out/spillway.yaml
	cp out/spillway.yaml deploy/spillway.yaml
	{ printf '# Written by make manifests from deploy/prometheus/rules.yaml.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: spillway\n  namespace: spillway-system\n  labels:\n    release: kube-prometheus-stack\nspec:\n'; \
		sed 's/^./  &/' deploy/prometheus/rules.yaml; } >deploy/components/prometheus-operator/rules.yaml

.PHONY: score
score: ## lint the manifests, each overlay as it is rendered
	.ci/score $(KUBECTL)

.PHONY: rules
rules: ## have Prometheus' own tool check the rules, and play the tests in which each alert fires and resolves
	.ci/prometheus promtool check rules deploy/prometheus/rules.yaml
	.ci/prometheus promtool test rules deploy/prometheus/rules_test.yaml

.PHONY: generate
generate: ## compile bpf/ again and write the Go code that loads it, and the page of metrics from the code
	@.ci/deps bpf
	$(GO) generate ./ebpf/...
	$(GO) test ./deploy -run='^TestMetricsPage$$' -update

.PHONY: cluster-up
cluster-up: ## bring the test cluster up and leave it running
	$(CLUSTERCTL) up

.PHONY: cluster-down
cluster-down: ## take the test cluster down, also after a crash
	$(CLUSTERCTL) down

.PHONY: clean
clean: ## remove what make builds
	rm -rf bin out

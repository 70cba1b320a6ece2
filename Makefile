# The one door: `make` lists what it can do. Each step of CI is one of these targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# Where Debian keeps losetup and mkfs.ext4; a root shell by plain `su` lacks them.
export PATH := $(PATH):/usr/sbin:/sbin

CARGO ?= cargo
GO ?= go

# `.cargo/config.toml` names a target, so binaries are one directory deeper than usual.
HOST = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET_DIR = $(abspath $(or $(CARGO_TARGET_DIR),target))
BINARY = $(TARGET_DIR)/$(HOST)/release/mooring

# What a release binary says it is built from; and nothing in it of who built it where.
REVISION = $(or $(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null),unknown)
CRATES = $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src
ANYWHERE = --config "target.'cfg(unix)'.rustflags=['--remap-path-prefix=$(CRATES)=crates']"

# The image: its platforms, as Rust's targets, and its name.
TARGETS = $(HOST)
BINARIES = $(TARGETS:%=$(TARGET_DIR)/%/release/mooring)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE = docker.io/library/mooring:$(VERSION)

CLUSTER = .build/cluster
CLUSTER_SOURCES = $(wildcard tests/cluster/*.go) tests/cluster/go.mod tests/cluster/go.sum
HELM = .build/helm

# Where Kubernetes' programs keep their version; clients refuse one without.
STAMP = k8s.io/component-base/version
KUBERNETES = $(shell sed -n 's,^.*k8s.io/kubernetes v,v,p' tests/cluster/go.mod)
MAJOR = $(subst v,,$(word 1,$(subst ., ,$(KUBERNETES))))
MINOR = $(word 2,$(subst ., ,$(KUBERNETES)))
HELM_VERSION = $(word 2,$(shell grep helm.sh/helm/v3 tests/cluster/go.mod))

.PHONY: help
help: ## List the targets (the default)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-9s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what building and testing need (as root), or say what is missing
	@tests/setup

.PHONY: build
build: ## Build the agent's release binary
	MOORING_REVISION=$(REVISION) $(CARGO) build --release $(TARGETS:%=--target=%) $(ANYWHERE)

.PHONY: image
image: build ## Write the agent's container image to .build/image/mooring.tar
	deploy/image/build '$(IMAGE)' '$(REVISION)' .build/image/mooring.tar $(BINARIES)

.PHONY: cluster
cluster: $(CLUSTER) ## Build the Kubernetes control plane that tests and demo run

$(CLUSTER): $(CLUSTER_SOURCES)
	@echo "Building Kubernetes $(KUBERNETES) into $@ (about 5 minutes the first time)"
	@mkdir -p $(@D)
	cd tests/cluster && CGO_ENABLED=0 $(GO) build -trimpath -o ../../$@.new \
	    -ldflags "-s -w -X $(STAMP).gitVersion=$(KUBERNETES) -X $(STAMP).gitMajor=$(MAJOR) -X $(STAMP).gitMinor=$(MINOR)"
	@mv $@.new $@

.PHONY: helm
helm: $(HELM) ## Build helm, which tests install the chart with

$(HELM): tests/cluster/go.mod tests/cluster/go.sum
	@echo "Building helm $(HELM_VERSION) into $@"
	@mkdir -p $(@D)
	cd tests/cluster && CGO_ENABLED=0 $(GO) build -trimpath -o ../../$@.new \
	    -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=$(HELM_VERSION) \
	        -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=$(MAJOR) -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$(MINOR)" \
	    helm.sh/helm/v3/cmd/helm
	@mv $@.new $@

.PHONY: manifests
manifests: $(HELM) ## Make deploy/manifests from the chart
	cp deploy/monitoring/alerts.yaml deploy/chart/mooring/files/
	deploy/manifests/generate $(HELM) deploy/manifests

.PHONY: demo
demo: ## Show the agent at work on a real control plane and real disks; with NODES=2 on kubelets with pods (as root)
	@tests/setup --root "make demo$(NODES:%= NODES=%)"
	@$(MAKE) --no-print-directory build cluster $(if $(NODES),helm image)
	@$(if $(NODES),MOORING_DEMO_NODES='$(NODES)' $(E2E),MOORING_BIN='$(BINARY)') $(CARGO) run --quiet --example demo

# The file that `make image` writes.
E2E = MOORING_BIN='$(BINARY)' MOORING_IMAGE=.build/image/mooring.tar

.PHONY: test
test: setup build cluster helm image ## Run every test: units, node level (as root), API server, whole nodes
	$(E2E) $(CARGO) test --no-fail-fast

.PHONY: e2e
e2e: setup build cluster helm image ## Run the scenarios: two kubelets, the image, the chart (as root)
	$(E2E) $(CARGO) test --test e2e

.PHONY: bench
bench: setup build cluster ## Measure times, memory and API calls (as root)
	MOORING_REVISION=$(REVISION) MOORING_BIN='$(BINARY)' $(CARGO) bench $(ANYWHERE) --bench bench

# Each of the four parsers that read what others write.
FUZZ_SECONDS = 600

.PHONY: fuzz
fuzz: ## Fuzz what reads configs, PVs and the ledger, FUZZ_SECONDS each (600; needs a C++ compiler)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@for target in config identity ledger pv; do \
	    $(CARGO) fuzz run --fuzz-dir tests/fuzz --target-dir '$(TARGET_DIR)/fuzz' --sanitizer none $$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=10 || exit 1; \
	done

.PHONY: lint
lint: setup ## Check form, lints and the direction of imports
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	tests/lint/imports-test
	tests/lint/imports src
	@unformatted=$$(gofmt -l tests/cluster tests/fixtures); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	cd tests/cluster && CGO_ENABLED=0 $(GO) vet -trimpath ./...
	for script in $$(grep -rlI '^#!/bin/sh' deploy tests); do sh -n "$$script" || exit 1; done
	bash -n .ci/run
	@if command -v cargo-deny >/dev/null; then \
	    echo "$(CARGO) deny check licenses bans sources"; \
	    $(CARGO) deny check licenses bans sources; \
	else \
	    echo "Left out: licences and sources of dependencies (cargo install --locked cargo-deny)"; \
	fi

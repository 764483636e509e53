# The whole contributor interface: `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Where scripts/bootstrap puts uv if the machine has none.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

RUN := uv run --no-sync
MODULES := microsandbox_core microsandbox_net microsandbox_fs microsandbox_oci microsandbox microsandbox_cli
TESTS := conftest.py $(sort $(dir $(wildcard packages/*/tests/*.py))) tests demo
# Files of tests beside each other, a process for each processor; PYTEST=-n0: one after the other, for --pdb.
BESIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Directories whose programs import their neighbours, as Python lets a script do.
SCRIPTS := demo:tests/vectors:tests/performance
# What a checkout holds besides its sources once it is built.
BUILT := packages/core/src/microsandbox_core/_agent/agentd $(foreach p,net fs oci,packages/$p/src/microsandbox_$p/_native.abi3.so)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: environment
environment:
	@scripts/bootstrap
	@uv sync
# uv knows when sources change, not when somebody removes what was built from them.
	@ls $(BUILT) >/dev/null 2>&1 || uv sync $(foreach p,core net fs oci,--reinstall-package microsandbox-$p)

.PHONY: setup
setup: environment ## build everything, and install QEMU, e2fsprogs and the guest kernel if missing
	@$(RUN) msb setup

.PHONY: demo
demo: setup ## build an image, boot microVMs from it, show what the guest printed
	@[ "$$(id -u)" != 0 ] || scripts/need busybox=busybox-static
	@$(RUN) python demo/demo.py

.PHONY: test
test: setup ## all tests, Rust and Python (PYTEST="-m 'not slow'" passes options on)
	@scripts/need mkfs.erofs=erofs-utils busybox=busybox-static tmux=tmux openssl=openssl \
	  docker-registry=docker-registry skopeo=skopeo umoci=umoci htpasswd=apache2-utils
# The tests of completion and of the manual pages are skipped without these.
	@[ "$$(id -u)" != 0 ] || scripts/need zsh=zsh fish=fish mandoc=mandoc
# So are those of the network without these.
	@[ "$$(id -u)" != 0 ] || scripts/need ip=iproute2 nsenter=util-linux
	cargo test --workspace --locked --quiet
	$(RUN) pytest $(BESIDE) $(PYTEST)

.PHONY: cold
cold: setup ## the VM tests once more, with kernels that boot rather than start from templates (COLD=FILES: only these)
	MSB_COLD=1 $(RUN) pytest $(BESIDE) -m "vm and not once" $(or $(COLD),tests) $(PYTEST)

.PHONY: lint
lint: environment ## formatting, style, types, import directions
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy $(foreach m,$(MODULES),-p $m)
	MYPYPATH=$(SCRIPTS) $(RUN) mypy --explicit-package-bases $(TESTS)
	$(RUN) lint-imports
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

.PHONY: docs
docs: environment ## the reference of the command line: docs/cli.md, the settings' schema, the manual pages
	$(RUN) python -m microsandbox_cli.manual .

# What an input executes is counted where the toolchain can: those that reach something new are drawn from.
FUZZ_SECONDS ?= 60
COUNTED = $(if $(wildcard $(shell rustc --print target-libdir)/libprofiler_builtins-*),-C instrument-coverage --cfg counted)

.PHONY: fuzz
fuzz: export LLVM_PROFILE_FILE := /dev/null
fuzz: environment ## what parses images and what guests send, against drawn inputs (FUZZ_SECONDS=60 for each target)
	for package in oci net fs; do \
	  RUSTFLAGS="$(COUNTED)" cargo build --release --locked --quiet --target-dir target/fuzz/$$package \
	    --manifest-path packages/$$package/fuzz/Cargo.toml; done
# Those in Rust and those in Python beside each other.
	@trap 'kill $$(jobs -p) 2>/dev/null || true' EXIT; begun=; \
	  for package in oci net fs; do \
	    target/fuzz/$$package/release/fuzz --seconds $(FUZZ_SECONDS) & begun="$$begun $$!"; done; \
	  for target in packages/oci/fuzz/fuzz_*.py; do $(RUN) python "$$target" --seconds $(FUZZ_SECONDS); done; \
	  for process in $$begun; do wait "$$process"; done

.PHONY: bench
bench: setup ## figures for start latency, throughput and memory
	@for bench in $(or $(wildcard tests/performance/run.py),$(sort $(wildcard tests/performance/bench_*.py))); do \
	  $(RUN) python "$$bench"; \
	done

.PHONY: wheels
wheels: environment ## source distributions and wheels of all packages, into dist/
	uv build --all-packages

.PHONY: clean
clean: ## remove everything that was built; the state in $MSB_HOME stays
	rm -rf target dist .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf $(BUILT) packages/core/src/microsandbox_core/_agent
	find packages tests demo -name __pycache__ -type d -prune -exec rm -rf {} +

# Every target makes or refreshes .venv itself. The first time takes minutes (torch is large),
# afterwards nothing. `make help` lists the targets.
#
#   PYTHON   the Python to build .venv with, 3.10 to 3.13 (default python3)
#   PYTEST   more arguments for pytest, e.g. make test PYTEST="-k cache"
#   WORKERS  processes that run the fast tests (default: one for each core, up to 4); 0: no others

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PYTEST ?=
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEEDED := Python 3.10 to 3.13 is needed. Name one like this: make PYTHON=python3.11

FAST := not slow and not model and not browser and not gpu
# Alone on the machine: they have all cores to themselves, or watch the clock or the memory.
LONG := (slow or model) and not browser and not gpu
# In a real browser, which is skipped where none is installed; some need the model, too.
BROWSER := browser and not gpu
# Workers take the tests in their order, and those of others when they are done: a module's are
# mostly run by one of them, so what they share is mostly set up once.
PARALLEL := -n $(WORKERS) --dist worksteal
# benchmarks/some_name.py is run by `make bench-some-name`; files that begin with _ are helpers.
BENCHES := $(subst _,-,$(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))))

# With a choice of its own, pytest may find no test of one kind (exit status 5).
NONE := $(if $(PYTEST),|| [ $$? -eq 5 ])

# $(call step,NAME,COMMAND) runs a command and says how long it took.
step = @began=$$SECONDS; echo "── $(1)"; if $(2); then echo "   ok: $(1), $$((SECONDS - began)) s"; \
	else echo "   FAILED: $(1), $$((SECONDS - began)) s" >&2; exit 1; fi

export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help
help: ## List the targets
	@echo "make TARGET, where TARGET is one of"
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' \
		| while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done
	@$(foreach name,$(BENCHES),echo "  bench-$(name)";)

# ---------------------------------------------------------------- environment

.PHONY: setup
setup: $(READY) ## Make or refresh .venv

$(READY): pyproject.toml constraints.txt
	@began=$$SECONDS; \
	if ! "$(BIN)/python" -c '' 2>/dev/null; then \
		command -v "$(PYTHON)" >/dev/null || { echo "make: no $(PYTHON) on the PATH; $(NEEDED)" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
			echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); $(NEEDED)" >&2; exit 1; }; \
		echo "── making $(VENV) with $$("$(PYTHON)" -V)"; \
		"$(PYTHON)" -m venv --clear "$(VENV)" || { \
			echo "make: cannot make $(VENV); on Debian and Ubuntu install python3-venv" >&2; exit 1; }; \
	fi; \
	echo "── installing packages into $(VENV) (minutes the first time)"; \
	"$(BIN)/python" -m pip install --quiet -c constraints.txt -e ".[dev]" || { \
		echo "make: the packages could not be installed; the lines above say why" >&2; exit 1; }; \
	touch "$@"; \
	echo "   ok: $(VENV), $$((SECONDS - began)) s"

# ---------------------------------------------------------------- using it

.PHONY: demo
demo: $(READY) ## See it work: a model writes training data, learns from it, and is measured
	@$(BIN)/python -m aios seal ab-test --config examples/demo.yaml --input examples/passages.jsonl

.PHONY: bench
bench: $(BENCHES:%=bench-%) ## Run all benchmarks; each writes benchmarks/results/NAME.json
	$(if $(BENCHES),,@echo "no benchmarks in benchmarks/")

.PHONY: $(BENCHES:%=bench-%)
$(BENCHES:%=bench-%): bench-%: $(READY)
	$(call step,bench-$*,$(BIN)/python benchmarks/$(subst -,_,$*).py)

.PHONY: docs
docs: $(READY) ## Build the documentation into site/
	$(call step,documentation,$(BIN)/python -m mkdocs build --strict)

.PHONY: reference
reference: $(READY) ## Write docs/reference from the program: commands, settings, events, routes
	@$(BIN)/python -m scripts.reference

.PHONY: package
package: $(READY) ## Build sdist and wheel, install them in an environment of their own, use them
	$(call step,package,$(BIN)/python -m scripts.check_package)

.PHONY: licenses
licenses: $(READY) ## Write THIRD_PARTY_LICENSES.md anew
	$(call step,licences,$(BIN)/python -m scripts.licenses)

# ---------------------------------------------------------------- checking it

.PHONY: test
test: $(READY) ## Run all tests that this machine can run, with coverage
	$(call step,fast tests with coverage,$(BIN)/python -m pytest -q -m "$(FAST)" $(PARALLEL) --cov --cov-report= --cov-fail-under=0 $(PYTEST) $(NONE))
	$(call step,long tests with coverage,$(BIN)/python -m pytest -q -m "$(LONG)" --cov --cov-append --cov-report= --cov-fail-under=0 $(PYTEST) $(NONE))
	$(call step,browser tests with coverage,$(BIN)/python -m pytest -q -m "$(BROWSER)" --cov --cov-append --cov-report=term $(PYTEST) $(NONE))

.PHONY: test-browser
test-browser: $(READY) ## Run the tests in a real browser (Chromium, found by name or AIOS_CHROMIUM)
	$(call step,browser tests,$(BIN)/python -m pytest -q -m "$(BROWSER)" $(PYTEST))

# Some ten minutes for each 500 mutants. MUTATION: more arguments, see scripts/mutation_score.py.
MUTATION ?=
MUTATING := $(VENV)/.mutation

$(MUTATING): $(READY)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[mutation]"
	@touch "$@"

.PHONY: mutation
mutation: $(MUTATING) ## Score the tests of core/seal on a sample of mutants; not part of any other target
	$(call step,mutants,$(BIN)/python -m scripts.mutation_score $(MUTATION))

.PHONY: check
check: $(READY) ## Check style, types, layers, documentation, and run the fast tests
	$(call step,format,$(BIN)/ruff format --check --quiet .)
	$(call step,lint,$(BIN)/ruff check --quiet .)
	$(call step,types,$(BIN)/mypy --no-error-summary)
	$(call step,layers,$(BIN)/lint-imports --no-logo)
	$(call step,documentation,$(BIN)/python -m mkdocs build --strict)
	$(call step,fast tests,$(BIN)/python -m pytest -q -m "$(FAST)" $(PARALLEL) $(PYTEST))

.PHONY: format
format: $(READY) ## Format the code and repair what ruff can repair
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

# ---------------------------------------------------------------- cleaning up

.PHONY: clean
clean: ## Remove what builds and checks leave; keeps .venv and artifacts/
	@rm -rf build dist site mutants htmlcov .coverage .coverage.* coverage.xml
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find $(wildcard src tests scripts experiments benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed builds and caches; .venv and artifacts/ are kept"

.PHONY: distclean
distclean: clean ## The same, and .venv
	@rm -rf "$(VENV)"

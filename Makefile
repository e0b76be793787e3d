# Two commands matter: `make demo` (set up, then the main job) and `make test` (set up, then every check).
# Both work from a bare clone and may be run again at any time.

PYTHON ?= python3
BIN    := .venv/bin
JOBS   ?= 2
DEMO   := chat --rate-scale 4 --topology colocated --topology 1p1d --slo ttft=500ms,tpot=12ms --out out
SHORT  := chat --limit 30

.PHONY: help demo test fast setup lint tests docs format wheel clean

help:
	@echo "make demo    set up, compile once, compare colocated with 1P1D on a shipped trace; writes out/"
	@echo "make test    set up, then style, types, layers, tests and notebooks"
	@echo "make fast    the same without slow tests and notebooks"
	@echo "make docs    build the documentation as a site into site/"
	@echo "make format  put the code into shape"
	@echo "make wheel   build a wheel into dist/"
	@echo "make clean   remove what was built; .venv stays"

demo: setup
	$(BIN)/simulate $(DEMO)

test: lint tests

setup: .venv/compiled

$(BIN)/simulate: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]'
	@touch $@

# Engines are compiled on their first run and kept on disk. Done here once, so that nobody waits for it later and test
# workers need not each do it.
.venv/compiled: $(BIN)/simulate $(shell find simulator -name '*.py')
	@echo "compiling the engines, once: a minute or two"
	@$(BIN)/simulate $(SHORT) --topology colocated --topology 1p1d --quiet > /dev/null & one=$$!; \
	 $(BIN)/simulate $(SHORT) --topology llama-3.1-8b/h100_sxm/1c/sglang --quiet > /dev/null && wait $$one
	@touch $@

lint: $(BIN)/simulate
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

tests: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --nbmake tests notebooks

fast: lint setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" tests

docs: $(BIN)/simulate
	$(BIN)/mkdocs build --strict

format: $(BIN)/simulate
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(BIN)/simulate
	$(BIN)/pip wheel . --no-deps --wheel-dir dist

clean:
	rm -rf out dist build site .venv/compiled .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find simulator tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Two commands matter: `make demo` (set up, then the main job) and `make test` (set up, then every check).
# Both work from a bare clone and may be run again at any time.

PYTHON ?= python3
BIN    := .venv/bin
JOBS   ?= 2
DEMO   := chat --rate-scale 4 --topology colocated --topology 1p1d --slo ttft=500ms,tpot=12ms --out out

.PHONY: help demo test fast setup warm lint tests format wheel clean

help:
	@echo "make demo    set up, compile once, compare colocated with 1P1D on a shipped trace; writes out/"
	@echo "make test    set up, then style, types, layers, tests and notebooks"
	@echo "make fast    the same without slow tests and notebooks"
	@echo "make format  put the code into shape"
	@echo "make wheel   build a wheel into dist/"
	@echo "make clean   remove what was built; .venv stays"

demo: warm
	$(BIN)/simulate $(DEMO)

test: lint tests

setup: $(BIN)/simulate

$(BIN)/simulate: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]'
	@touch $@

# The engine is compiled on its first run and kept on disk; done here once, test workers need not each do it.
warm: setup
	@$(BIN)/simulate chat --limit 30 --topology colocated --topology 1p1d > /dev/null

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: warm
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --nbmake tests notebooks

fast: lint warm
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" tests

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup
	$(BIN)/pip wheel . --no-deps --wheel-dir dist

clean:
	rm -rf out dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find simulator tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# make tables [CONFIG=config/....yaml] [CORES=n]   run a matrix, make its tables, figures and report
# make tune [CONFIG=...]                                    search hyper-parameters on held-out training images
# make test                                                 run the tests
# All set up the virtual environment .venv themselves. Nothing else is needed first.

CONFIG ?= config/split-digits.yaml
CORES ?= all
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ARGS ?=
# Tests run in as many processes as there are cores; tests/conftest.py says which stay together.
PARALLEL ?= -n auto

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A config file that Snakemake could not read, in one line; status 2.
CHECK = @$(BIN)/python workflow/scripts/planning.py "$(CONFIG)"
RUN = $(BIN)/snakemake --configfile "$(CONFIG)"

.PHONY: help tables figures report cells tune partial dry-run test test-all lint format api pins clean distclean

help:
	@echo 'make tables  [CONFIG=FILE] [CORES=N]   run a matrix; tables, figures and report in results/<name>/'
	@echo 'make figures | report | cells          the same, up to that point'
	@echo 'make tune    [CONFIG=FILE]             a hyper-parameter search; its choice in results/<name>/tuned.yaml'
	@echo 'make partial [CONFIG=FILE]             tables, figures and report of the records there are'
	@echo 'make dry-run [CONFIG=FILE]             what would run, and why'
	@echo 'make test    [ARGS=...]                tests (ARGS go to pytest)'
	@echo 'make test-all [ARGS=...]               every test; ARGS="-m slow": those alone that make test leaves out'
	@echo 'make lint                              ruff, mypy, snakefmt, snakemake --lint, docstrings'
	@echo 'make api                               the API reference, build/api, from the docstrings'
	@echo 'make format                            ruff format, snakefmt'
	@echo 'make clean | distclean                 caches | and the virtual environment (results stay)'

tables: target = all
figures: target = figures
report: target = report
cells: target = cells
tune: target = tune
ifeq ($(origin CONFIG),file)
tune: CONFIG = config/tune-split-digits.yaml
endif
tables figures report cells tune: $(STAMP)
	$(CHECK)
	@$(RUN) --cores "$(CORES)" $(ARGS) -- $(target)

partial: $(STAMP)
	$(CHECK)
	@$(RUN) --cores "$(CORES)" --config partial=true $(ARGS) -- all

dry-run: $(STAMP)
	$(CHECK)
	@$(RUN) --dry-run $(ARGS) -- all

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) --all $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/python workflow/scripts/api.py --check

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# The API reference, build/api, from the docstrings.
api: $(STAMP)
	$(BIN)/python workflow/scripts/api.py

# The pinned versions, from what is installed in the virtual environment.
pins: $(STAMP)
	$(BIN)/python workflow/scripts/pins.py

# The kernel is compiled with the package: its sources make it stale, too.
$(STAMP): pyproject.toml constraints.txt $(wildcard sparcl/kernels/csrc/*)
	@test -n "$(PYTHON)" || { echo 'error: Python 3.11 or newer is needed (name it with make PYTHON=...)' >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
		echo 'error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)' >&2; exit 2; }
	@echo 'setting up $(VENV): the first time this downloads PyTorch and takes some minutes'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench,export,test]'
	@touch $@

# Not .snakemake: by what it remembers a result is known to be stale.
clean:
	rm -rf .snakemake/log .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

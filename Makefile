# Sets up everything from nothing but Python 3.11 and make; see `make help`.

VENV ?= .venv
JOBS ?= 2

define HELP
make demo         train with KFAC and others, compare factors with BackPACK's
make test         run the tests
make test-processors  run some as on processors with other instructions
make bench        measure KFAC's factors and others over nine networks' layers
make docs         build the site of docs/ in site/
make docs-figures draw the pictures of docs/, write its gallery
make lint         check style, types, docstrings, spelling and import layers
make format       format the code
make venv         set up the environment, as all of the above do where it is missing
make venv-key     print what an environment may be reused for
make clean        remove caches and build outputs
make distclean    remove the environment, too

VENV=PATH         the environment, 5.6 GB (default: .venv)
PYTHON=COMMAND    Python >= 3.11 to make it from (default: python3.11, else python3)
JOBS=N            processes that run the tests (default: 2)
PYTEST_ARGS=...   what to test, for instance "-k conv"
BENCH_ARGS=...    what to measure, for instance "--quick"
endef
export HELP

# the first Python that is new enough, and the key of environments made from it
KEY_CODE := import hashlib, platform, sys; \
	sys.version_info >= (3, 11) or sys.exit(1); \
	parts = [open(name, "rb").read() for name in ("setup.cfg", "pyproject.toml")]; \
	parts.append(platform.python_version().encode()); \
	print(hashlib.sha256(b"\0".join(parts)).hexdigest()[:16])
CANDIDATES := $(or $(PYTHON),python3.11 python3)
FOUND := $(shell for candidate in $(CANDIDATES); do \
	key=$$("$$candidate" -c '$(KEY_CODE)' 2>/dev/null) \
	&& echo "$$candidate $$key" && break; done)
BASE_PYTHON := $(word 1,$(FOUND))
KEY := $(word 2,$(FOUND))
NO_PYTHON = { echo "make: no Python >= 3.11 found (tried: $(CANDIDATES));" \
	"install it or pass PYTHON=/path/to/python3.11" >&2; exit 1; }

# a file in an environment says what it is: its key, once it is complete
UNFINISHED := $(VENV)/.tn_extensions-unfinished
READY := $(VENV)/.tn_extensions-$(or $(KEY),none)

# a shared environment may have been made from another checkout: run the code of this one
IN_CHECKOUT := PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"
RUN := $(IN_CHECKOUT) "$(VENV)/bin/python"

.PHONY: help demo test test-processors bench docs docs-figures lint format venv venv-key clean distclean

help:
	@echo "$$HELP"

demo: $(READY)
	$(RUN) -m experiments.demo

# the processes share the cores; more threads than that slow each other down. A file's tests
# share plans and fixtures, so one process runs them all; the longest files are not the last
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: $(READY)
	$(PYTEST) $(PYTEST_ARGS)

# results may differ in the last digits, which no test may see; these decompose matrices
SMOKE = $(PYTEST) -q -k "kronecker or native or singular or singd" tests/kronecker \
	tests/compiler/test_native.py tests/optim
test-processors: $(READY)
	ATEN_CPU_CAPABILITY=default $(SMOKE)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(SMOKE)

bench: $(READY)
	$(RUN) -m experiments convolutions $(BENCH_ARGS)

# the variable silences an advertisement of the theme
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

docs-figures: $(READY)
	$(RUN) -m docs.gallery

lint: $(READY)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	"$(VENV)/bin/pydoclint" tn_extensions
	"$(VENV)/bin/codespell"
	$(IN_CHECKOUT) "$(VENV)/bin/lint-imports"

format: $(READY)
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

venv: $(READY)

$(READY):
	@[ -n "$(KEY)" ] || $(NO_PYTHON)
	@[ -z "$$(ls -A "$(VENV)" 2>/dev/null)" ] || ls "$(VENV)"/.tn_extensions-* >/dev/null 2>&1 \
		|| { echo "make: $(VENV) was not made by this Makefile;" \
		"remove it or pass VENV=/another/path" >&2; exit 1; }
	rm -rf "$(VENV)"
	mkdir -p "$(VENV)"
	touch "$(UNFINISHED)"
	"$(BASE_PYTHON)" -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --editable ".[dev]"
	mv "$(UNFINISHED)" "$@"

venv-key:
	@[ -n "$(KEY)" ] || $(NO_PYTHON)
	@echo "$(KEY)"

clean:
	rm -rf build dist site *.egg-info .*_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -exec rm -rf {} +

distclean: clean
	@[ ! -e "$(VENV)" ] || ls "$(VENV)"/.tn_extensions-* >/dev/null 2>&1 \
		|| { echo "make: $(VENV) was not made by this Makefile" >&2; exit 1; }
	rm -rf "$(VENV)"

# Each target makes its own environment on a fresh machine. `make demo VENV=/somewhere` takes an
# environment that is there already, and installs nothing into it.
VENV := .venv
PYTHON := python3

ifeq ($(origin VENV),file)
INSTALLED := $(VENV)/.installed
CROSSCHECK := $(VENV)/.kvpress
endif

.PHONY: demo quality quick test test-long mutations lint

demo: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.demo

# What pruning costs in answers; fetches a model of 98 MB at first use.
quality: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.quality --quick

# Two at a time, on two cores: most of what starts servers, which takes longest, and beside it all else. Triton's
# interpreter is switched on for a whole process, so the kernels' tests have one of their own. Each process has one
# OpenMP thread: with more, threads of one stream wait for those of the other, and spin.
define TESTS
	@export OMP_NUM_THREADS=1; failed=0; said=$$(mktemp); \
	{ beside=0; \
	  $(VENV)/bin/pytest tests/kernels $(1) || beside=1; \
	  CUDA_VISIBLE_DEVICES= $(VENV)/bin/pytest tests --ignore=tests/kernels --ignore-glob='*/test_server_[a-prs]*' $(1) || beside=1; \
	  exit $$beside; } >$$said 2>&1 & others=$$!; \
	trap "pkill -P $$others 2>/dev/null; kill $$others 2>/dev/null" INT TERM; \
	CUDA_VISIBLE_DEVICES= $(VENV)/bin/pytest tests/test_server_[a-prs]*.py $(1) || failed=1; \
	wait $$others || failed=1; \
	cat $$said; rm $$said; \
	exit $$failed
endef

# What a change is tried with.
quick: $(INSTALLED)
	$(call TESTS,-m "not full")

test: $(INSTALLED) $(CROSSCHECK)
	$(call TESTS)

# One-line faults that the tests of `quick` must notice.
mutations: $(INSTALLED)
	$(VENV)/bin/python tests/mutations.py

# Interleavings of a scheduler, 2,000 for each tree: about half an hour.
test-long: $(INSTALLED)
	LAPROX_EXAMPLES=2000 CUDA_VISIBLE_DEVICES= $(VENV)/bin/pytest tests/test_memory_properties.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml
	@echo "Installing SGLang and PyTorch into $(VENV): about 9 GB, 3 to 5 minutes. This is done once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[dev]"
	@touch $@

# What our baselines are checked against. It asks for a transformers that SGLang does not go with, and only
# its scores are wanted: it comes without what it asks for, beside what its import needs.
$(VENV)/.kvpress: $(VENV)/.installed
	$(VENV)/bin/pip install --no-deps kvpress==0.5.5 cachetools fire peft termcolor
	@touch $@

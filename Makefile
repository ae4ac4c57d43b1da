# make demo      see it work: a store, a file, two lost disks, the file again
# make test      everything that must hold: style, types, floors, tests
# make soak      a thousand and more new histories of the simulated store, and what they came to (SOAK=10000 for more)
# make powercut  the power cut at many moments of a real file system (as root; POWERCUT="--disks 2 --cuts 200" for more)
# make bench     how fast it is here, beside straight-line programs
# make docs      docs/api.md and the man pages anew, from the methods and commands
# make clean     forget what make built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --use-pep517

.PHONY: demo docs test soak powercut bench clean needs needs-test

demo: $(VENV)/.installed
	@$(BIN)/zstor demo

bench: $(VENV)/.installed
	@$(BIN)/zstor bench

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

test: needs-test $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.simulation.soak $(or $(SOAK),1000)

powercut: $(VENV)/.installed-test
	@test -e /usr/lib/*/libfuse.so.2 -a -e /dev/fuse || { echo "this needs root, /dev/fuse and:  apt-get install -y libfuse2" >&2; exit 1; }
	@$(PIP) --editable '.[test,powercut]'
	unshare --mount $(BIN)/python -m tests.powercut $(POWERCUT)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	@echo "installing zstor-local into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/pip
	@echo "installing zstor-local and what its tests need into $(VENV)"
	@$(PIP) --editable '.[test]'
	@touch $(VENV)/.installed $@

$(BIN)/pip:
	@$(MAKE) --no-print-directory needs
	@$(PYTHON) -m venv $(VENV)

# What the bare system must have. One line names all that is missing; zfec is compiled where no built one fits.
needs-test: tools = socat nc curl jq node npm gcc openssl zsh fish bash-completion
needs needs-test:
	@$(recent) || { echo "Python 3.11 or newer is needed as python3, or: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(missing) test -z "$$missing" || { echo "this needs:  sudo apt-get install -y$$missing" >&2; exit 1; }

recent = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
built = $(PYTHON) -c 'import platform, sys; sys.exit(platform.machine() != "x86_64" or sys.version_info >= (3, 14))'
header = $$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
missing = missing=""; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(built) || { command -v cc && test -e "$(header)"; } >/dev/null || missing="$$missing gcc python3-dev"; \
	for tool in $(tools); do command -v $$tool >/dev/null || test -e /usr/share/$$tool/bash_completion || { case $$tool in nc) tool=netcat-openbsd;; node) tool=nodejs;; esac; missing="$$missing $$tool"; }; done;

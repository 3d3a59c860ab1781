# Everything runs in .venv, which is created if it is missing. On Windows, use Git Bash or WSL, with
# `make` and Python on the PATH.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev
# One process per core; tests/distribution.py says which tests go together.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: help demo test check docs clean

help:
	@echo "make demo    train a LoRA on the embedded SDXL; images before and after"
	@echo "             make demo MODEL=z-image does so on the embedded Z-Image, in a ComfyUI that you have"
	@echo "make test    run the tests"
	@echo "make check   run everything that a change must pass: ruff, basedpyright and the tests"
	@echo "make docs    write the generated parts of the help pages, and docs/reference.md"
	@echo "make clean   remove .venv and the tools' caches"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter that .venv is made from (3.10 or newer; now: $(PYTHON))."
	@echo "On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes of CUDA."

demo: $(INSTALLED)
	$(BIN)/python -m trainers demo $(if $(MODEL),--model $(MODEL))

test: $(INSTALLED_DEV)
	$(PYTEST)

check: $(INSTALLED_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(PYTEST)

docs: $(INSTALLED_DEV)
	$(BIN)/python -m docs.generate

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last: an installation that was cut short is done again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@touch $@

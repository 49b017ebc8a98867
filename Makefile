# One name for each thing: people and CI run the same.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=

.PHONY: venv demo demo-full test test-slow test-matrix check bench emoji clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.11 or the like"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The demo's pictures and names: on Debian and Ubuntu from its packages; elsewhere the demo says what to install.
emoji:
	@if [ ! -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || [ ! -d /usr/share/unicode/cldr/common ] || [ ! -e /usr/share/unicode/emoji/emoji-test.txt ]; then \
	  if command -v apt-get >/dev/null; then \
	    if [ "$$(id -u)" = 0 ]; then run=; else run=sudo; fi; \
	    $$run apt-get update -qq && $$run apt-get install -y -qq --no-install-recommends fonts-noto-color-emoji unicode-cldr-core unicode-data; \
	  fi; \
	fi

demo: venv emoji
	$(BIN)/demo --config demo $(DEMO_ARGS)

# The demo's table with mined and judged negatives, soft labels, a reranker, three seeds: about an hour.
demo-full: venv emoji
	$(BIN)/demo full $(DEMO_ARGS)

test: venv emoji
	$(BIN)/python -m pytest

test-slow: venv emoji
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,engines]'
	$(BIN)/python -m pytest -m slow

# The tests of library and jobs with torchvision, at the lowest and at the newest versions: half an hour.
test-matrix: venv
	$(BIN)/python -m tests.matrix $(MATRIX)

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: venv
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache

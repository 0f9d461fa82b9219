# Everything runs in .venv, which is made from the requirements when they change.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-nightly test-gpu mutants check docs clean

train: .venv/train ## the main job
	$(BIN)/python train.py $(ARGS)

test: .venv/dev ## the tests of the gate, on all cores: minutes
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-nightly: .venv/dev ## all other tests, then the planted faults: hours; browser tests need chromium
	$(BIN)/python -m pytest -n auto --dist loadfile -m "nightly or browser" $(ARGS)
	$(BIN)/python -m tests.mutants

test-gpu: .venv/dev ## everything that has a CUDA path; writes docs/gpu.md, which can be committed
	$(BIN)/python -m pytest -m gpu -p tests.gpu_page $(ARGS)

mutants: .venv/dev ## plants one-line faults: a test must see each; half an hour on 2 cores
	$(BIN)/python -m tests.mutants $(ARGS)

check: .venv/dev ## format, lint, types, the rules of the tree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

docs: .venv/train ## every table that code can write, in README.md and docs/
	$(BIN)/python -m app.pages

.venv/train: requirements.txt
	$(PYTHON) -m venv .venv
	@echo "installing the requirements into .venv; torch alone is some 200 MB for the CPU, gigabytes for CUDA"
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/train
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .cache runs

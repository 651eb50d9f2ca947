# make demo: train a small masked autoencoder with learned masks and look at what it masks.
# make test: every test. Both set themselves up in .venv.
.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast test-thorough mutants estimators lint

EXTRAS := mmpretrain,test,dev
PYTHON_ENV := .venv/bin/python
WORK_DIR := work_dirs/demo
CONFIG := configs/mmpretrain/mae_amn_vit-tiny_photos.py

help:
	@sed -n 's/^# //p' Makefile

env:
	@bash .ci/env.sh .venv "$(EXTRAS)"

demo: env
	@test -d data/photos || $(PYTHON_ENV) benchmarks/photos.py data/photos
	.venv/bin/mim train mmpretrain $(CONFIG) --work-dir $(WORK_DIR)
	@$(PYTHON_ENV) benchmarks/report.py $(WORK_DIR)

test: env
	$(PYTHON_ENV) -m pytest

# Without the tests that start processes or train.
test-fast: env
	$(PYTHON_ENV) -m pytest -m "not slow"

# Every law on 100 times as many drawn cases.
test-thorough: env
	HYPOTHESIS_PROFILE=thorough $(PYTHON_ENV) -m pytest -m "not slow" --timeout 7200

# Break the mask path in every way mutmut knows and see that a test notices.
mutants: env
	HYPOTHESIS_PROFILE=mutants .venv/bin/mutmut run --max-children 2
	.venv/bin/mutmut results

# The figures of docs/estimators.md.
estimators: env
	$(PYTHON_ENV) -m benchmarks.estimators

lint: env
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

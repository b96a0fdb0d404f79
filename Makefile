# make run | test | lab | bench     each does all its own set-up, in .venv, the first time
# make long                         the tests that make test leaves out for their time
# make export | readme | clean      for people who change the notebooks
# make docs | slides                the site, in _docs/site; slides of the course, in _docs/slides
# make release                      wheel and source distribution, in dist/, tried in empty environments
# Another Python: make run PYTHON=/path/to/python3.12     More arguments: make test ARGS="-k schedule"

PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE   # without bytecode every start imports torch twice as slowly

.PHONY: help run test long lab bench export readme docs slides release clean

help:
	@sed -n '1,6s/^# //p' Makefile

run: .venv/ready
	@$(BIN)/autolora demo $(ARGS)

test: .venv/ready
	@AUTOLORA_CHROMIUM="$$(sh tests/find_chromium.sh --install)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations 20 $(ARGS)

long: .venv/ready
	@$(MAKE) --no-print-directory test ARGS="-m long $(ARGS)"

lab: .venv/ready
	@$(BIN)/jupyter lab nbs/lab.ipynb $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(ARGS)

bench: .venv/ready
	@bad=; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" || bad="$$bad $$script"; done; \
	[ -z "$$bad" ] || { echo "these reported a fault:$$bad"; exit 1; }

export: .venv/ready
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean && $(BIN)/python tools/readme.py && $(BIN)/python tools/known.py

readme: .venv/ready
	@$(BIN)/python tools/readme.py

docs: .venv/ready
	@$(BIN)/python tools/docs.py $(ARGS)

slides: .venv/ready
	@$(BIN)/python tools/slides.py $(ARGS)

release: .venv/ready
	@$(BIN)/python tools/release.py $(ARGS)

clean:
	rm -rf .venv build dist _proc _docs .pytest_cache .ruff_cache *.egg-info benchmarks/.peers
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted set-up goes on the next time.
.venv/ready: constraints.txt settings.ini setup.py pyproject.toml tools/setup.sh
	@sh tools/setup.sh "$(PYTHON)" && touch $@

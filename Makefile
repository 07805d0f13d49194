# make course   set up, execute the notebooks, write them as HTML to build/course/
# make check    set up, lint, type-check, then the quick tests (a minute and a half on 2 cores)
# make test     the same with all tests, notebooks included (12 minutes)
# make lab      open JupyterLab on copies of the notebooks in work/ (ignored by git), with functions to
#               fill in; EDITION=complete for copies with the solutions
# make site     write the web book to build/site/, from the outputs stored in the notebooks
# make slides   write a deck for each of 01 to 05, and one for a lecture, to build/slides/
# make mutations  plant faults in copies of the repository; each must turn a test red (10 minutes)
# make mutants  change every operator and number of the mathematical modules, one at a time, and list
#               what no test noticed (40 minutes on 2 cores; can be stopped and goes on)
# make trust    measure the numbers of the page of trust again, and write them there (half an hour)
# make oldest   run the tests with the oldest versions that pyproject.toml declares, in build/oldest
# make notebooks  execute the notebooks in place, to store fresh outputs (for authors)
# make homework-release                      the students' version, in build/homework/ (VARIANT=2027: other numbers)
# make homework-grade SUBMISSIONS=folder     grade a class (GRADE="--roster class.csv --jobs 2 --resume")
# Another Python: make PYTHON=python3.12 course. Options for JupyterLab: make lab LAB=--no-browser
# On Linux without a GPU, the first time: make TORCH=cpu course (PyTorch without NVIDIA's libraries)

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NOTEBOOKS := $(wildcard notebooks/0*.ipynb notebooks/beyond/*.ipynb)
EDITION ?= fill-in
# Progress bars are for live sessions: a stored one would be a dead widget.
EXECUTE := TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --execute --ExecutePreprocessor.timeout=900 \
	--ExecutePreprocessor.store_widget_state=False

.PHONY: course check test lab site slides mutations mutants trust oldest notebooks lint \
	homework-release homework-grade

course: $(STAMP)
	$(EXECUTE) --ExecutePreprocessor.record_timing=False --to html --template course --TemplateExporter.extra_template_basedirs=docs/nbconvert \
		--output-dir build/course $(NOTEBOOKS)
	cp .venv/lib/python3*/site-packages/sphinx-mathjax-offline/static/mathjax/tex-svg.js build/course/
	@echo "open build/course/$(notdir $(basename $(firstword $(NOTEBOOKS)))).html"

# One thread in each of several processes is faster than the other way round; a file or notebook
# stays in one process, and conftest.py puts the long ones first.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope \
	--no-loadscope-reorder

# Without nbval, which takes four seconds to import in every process.
check: lint
	$(PYTEST) -p no:nbval -o addopts="--doctest-modules --import-mode=importlib --strict-markers" \
		-m "not slow" tests trustml_helpers

# From Python 3.12 on coverage is measured without a trace function, at next to no cost.
test: lint
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print(["ctrace", "sysmon"][sys.version_info > (3, 12)])') \
		$(PYTEST) --cov --cov-report=term

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

lab: $(STAMP)
	$(BIN)/trustml course work --edition $(EDITION) --no-open
	$(BIN)/jupyter lab --notebook-dir=work $(LAB)

site: $(STAMP)
	$(BIN)/python docs/site/assemble.py build/site-source
	$(BIN)/python -m sphinx -W --keep-going -q build/site-source build/site
	@echo "open build/site/index.html"

slides: $(STAMP)
	$(BIN)/python docs/slides/cut.py build/slides-source
	$(BIN)/python -m sphinx -b revealjs -W --keep-going -q build/slides-source build/slides
	@echo "open build/slides/index.html"

mutations: $(STAMP)
	$(BIN)/python tests/mutations/plant.py

mutants: $(STAMP)
	$(BIN)/python -m pip install -q "mutmut>=3.8"
	TESTS=fault OMP_NUM_THREADS=1 $(BIN)/python tests/mutations/mutants.py run --max-children 2
	$(BIN)/python tests/mutations/mutants.py results

trust: $(STAMP)
	$(BIN)/python docs/site/trust.py faults errors tests

# pip takes the newest versions only; uv can take the oldest.
oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install -q uv
	build/oldest/bin/python -m uv pip install -q --python build/oldest/bin/python \
		--resolution lowest-direct -e ".[dev,homework,docs]"
	$(subst $(BIN),build/oldest/bin,$(PYTEST))

notebooks: $(STAMP)
	$(EXECUTE) --ExecutePreprocessor.record_timing=True --to notebook --inplace $(NOTEBOOKS)
	$(BIN)/python docs/nbconvert/still.py $(NOTEBOOKS)

homework-release: $(STAMP)
	$(BIN)/trustml homework release --variant "$(VARIANT)"

homework-grade: $(STAMP)
	@test -n "$(SUBMISSIONS)" || { echo "name the folder: make homework-grade SUBMISSIONS=folder"; exit 2; }
	$(BIN)/trustml homework grade "$(SUBMISSIONS)" --variant "$(VARIANT)" $(GRADE)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 course"; exit 1; }
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	test -z "$(TORCH)" || $(BIN)/python -m pip install --quiet torch torchvision \
		--index-url https://download.pytorch.org/whl/$(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev,homework,docs]'
	touch $@

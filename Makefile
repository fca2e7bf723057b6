# make report   run the notebooks; write report.html, report.pdf, slides.pdf and script.pdf
# make publish  rebuild the copies of these four in report/ and report/zh-TW/, from recorded data
# make test     run the test suite
# make lint     check style, types, and that the notebooks hold no outputs
# make lab      open the notebooks in JupyterLab
# make sanitize on a GPU machine: look for reads out of bounds and races, with compute-sanitizer
#               (TOOLS=memcheck GRIDS=grid chooses)
# make gpu-check on a GPU machine: tests, notebooks, report and more, into data/gpu-check
# make measure  on a GPU machine: check the kernels, measure everything, save both; installs nothing,
#               and goes on behind the point where it was interrupted
# make session  on a GPU machine: roof, model steps, peers and benchmarks in calls of 9 minutes
# make fuzz     compare every backend and kernel with the baseline on random calls for 5 minutes
# make clean    delete the environment, caches and everything a run has written
#
# PYTHON=python3.12 chooses the interpreter. SYSTEM_TORCH=1 uses the PyTorch that this interpreter
# already has, such as a CUDA build of another version, instead of installing the pinned one.
# After a change of either, make clean. REPORT_ARGS, TEST_ARGS, MEASURE_ARGS, SESSION_ARGS and
# GPU_CHECK_ARGS are passed on:
# make report REPORT_ARGS="-p batch_sizes='[1,4]'".

PYTHON ?= python3
SYSTEM_TORCH ?=
REPORT_ARGS ?=
TEST_ARGS ?=
MEASURE_ARGS ?=
GPU_CHECK_ARGS ?=
SESSION_ARGS ?=
TOOLS ?= memcheck racecheck
GRIDS ?= grid logits_grid
VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/installed
RECORD ?= data/benchmarks
# What runs without an installation finds the checkout wherever it goes, and what was there before.
IN_PLACE = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"

.PHONY: report publish test lint lab fuzz sanitize gpu-check measure session clean

report: $(STAMP)
	$(BIN)/rsk report $(REPORT_ARGS)

publish: $(STAMP)
	$(BIN)/rsk report --publish
	$(BIN)/rsk report --publish --lang zh-TW

# Side by side on up to four cores, then one by one what times something; 5 says "no such test".
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder \
	  $(TEST_ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest --alone $(TEST_ARGS) || [ $$? = 5 ]

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb
	$(BIN)/mypy

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

fuzz: $(STAMP)
	$(BIN)/python -m rsk.check --minutes 5

sanitize:
	$(IN_PLACE) $(PYTHON) -c "from rsk.sampler import build; build.load('cuda')"
	for tool in $(TOOLS); do for grid in $(GRIDS); do \
		$(IN_PLACE) compute-sanitizer --tool $$tool \
		--kernel-name kns=rsk --error-exitcode 1 \
		$(PYTHON) -m rsk.check.$$grid --few || exit 1; done; done

gpu-check:
	$(IN_PLACE) $(PYTHON) -m rsk.gpu_check $(GPU_CHECK_ARGS)

measure:
	$(IN_PLACE) $(PYTHON) -m rsk.measure.agreement --save data/kernels/agreement.json
	-$(IN_PLACE) $(PYTHON) -m rsk.measure.ideas --save data/kernels/ideas.json
	$(IN_PLACE) $(PYTHON) -m rsk benchmark --full --save $(RECORD) $(MEASURE_ARGS)

session:
	$(IN_PLACE) $(PYTHON) -m rsk.measure.session $(SESSION_ARGS)

clean:
	rm -rf $(VENV) report/build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation starts again. The constraints
# also hold for what the build of the package itself needs.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit( \
	  "rsk needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v[:2])'
	rm -f $@
	$(PYTHON) -m venv $(VENV)
	@if [ -z "$(SYSTEM_TORCH)" ]; then cp constraints.txt $(VENV)/constraints.txt; else \
	  grep -v -E '^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==' constraints.txt \
	    > $(VENV)/constraints.txt && \
	  $(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
	    > $(VENV)/system.pth && \
	  mv $(VENV)/system.pth "$$($(BIN)/python -c \
	    'import sysconfig; print(sysconfig.get_path("purelib"))')"; fi
	PIP_CONSTRAINT=$(VENV)/constraints.txt PIP_BUILD_CONSTRAINT=$(VENV)/constraints.txt \
	  $(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $@

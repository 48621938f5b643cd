# make results: tables, figures and report of the default study (the environment is made once).
# make test: the tests, in the same environment. make quick: lint and the fast tests, before a commit.
# Other targets: lint, docs, bench, lock, showcase, contact-sheet, test-long (also the tests that take
# long, and more random examples), test-portable (the tests that compute, as another kind of CPU
# would, on one and on two threads), test-slurm (the SLURM profile, on a SLURM that is started for
# it; as root on Debian, about 12 minutes beside other work), test-gpu (what can only be tried on a
# GPU) and bench-gpu (what it does in a second, for `loraudit plan --gpu`).
PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: results test test-long quick test-portable test-slurm test-gpu bench-gpu lint docs bench lock showcase contact-sheet

results: $(VENV)/.ready
	snakemake --cores all

# Each worker takes whole files, so that what a file's tests share is made once, and takes them in
# the order of tests/conftest.py.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
test: $(VENV)/.ready
	pytest $(WORKERS) --durations=15

# All tests, those of `long` too, and each test with random examples with many times as many.
test-long: $(VENV)/.ready
	pytest $(WORKERS) --durations=15 --hypothesis-profile=long -m "not slurm and not gpu"

quick: lint
	pytest $(WORKERS) --durations=5 -m "not pipeline and not slurm and not gpu and not long and not slow"

# Torch's own kernels, MKL, oneDNN and OpenBLAS (of numpy and scipy) on instructions that every x86
# CPU has: sums are rounded otherwise, as they are on another kind of CPU. Threads that wait do not
# spin (passive), which takes many times as long beside other work.
PORTABLE := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 \
  OPENBLAS_CORETYPE=Prescott NPY_DISABLE_CPU_FEATURES=X86_V3
test-portable: $(VENV)/.ready
	env $(PORTABLE) OMP_NUM_THREADS=1 pytest $(WORKERS) -m numerics
	env $(PORTABLE) OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive pytest -m numerics

test-slurm: $(VENV)/.ready
	pytest -m slurm

test-gpu: $(VENV)/.ready
	timeout -k 30 540 pytest -n 4 -m gpu -rs tests/gpu --record results/committed/bench/gpu_tests.csv

lint: $(VENV)/.ready
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint
	mypy
	lint-imports --no-logo

# The site, built without a network and with every link checked: open site/index.html from disk.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.ready
	mkdocs build --quiet

bench: $(VENV)/.ready
	snakemake --cores 1 resources/tokens/snippets/minilm-128/manifest.json
	python benchmarks/speed.py
	python benchmarks/runs.py
	python benchmarks/deploy.py
	python benchmarks/plan.py --dry-runs --out results/bench/dry_runs.csv
	python benchmarks/summary.py

bench-gpu: $(VENV)/.ready
	python benchmarks/gpu.py

# A failed set-up leaves no .ready, so the next call starts over.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Write the versions in use into the lock and into the rules' conda environment, after an upgrade by
# hand; torch's build tag is dropped.
lock:
	echo "# Exact versions for Python 3.11, resolved from pyproject.toml; made by \`make lock\`." > requirements.lock
	$(VENV)/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu//' >> requirements.lock
	sed -i '/^  - pip:/q' workflow/envs/loraudit.yaml
	sed -n 's/^[^#]/      - &/p' requirements.lock >> workflow/envs/loraudit.yaml

# Copy a finished study's tables, figures and report to results/committed and figures/committed.
STUDY ?= quickstart
COMMAND ?= snakemake --cores 2 --config study=$(STUDY)
showcase: $(VENV)/.ready
	python scripts/showcase.py --study $(STUDY) --command "$(COMMAND)"

# All committed figures on one page, to be looked at in one go.
contact-sheet: $(VENV)/.ready
	python scripts/contact_sheet.py --figures figures/committed --out contact-sheet.png

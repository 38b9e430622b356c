# Two commands on a fresh machine with Python 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
DEMO := demo-output
FACE := samples-0000/portraits/0006.jpg\#0

.DEFAULT_GOAL := help
.PHONY: help demo tour demo-toonify test test-slow compat hosts faults fuzz check audit bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# uv, where it is there, picks the build of torch that fits the machine.
.venv/installed: pyproject.toml .constraints.txt
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --clear --python 3.11 .venv && \
	  uv pip install --quiet --python $(BIN)/python --torch-backend auto -c .constraints.txt -e '.[dev]'; \
	else \
	  { command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv .venv || python3 -m venv .venv; } && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[dev]'; \
	fi
	@touch $@

demo: .venv/installed ## invert the sample images with the embedded model; ends with a contact sheet
	@rm -rf $(DEMO)
	@$(BIN)/python jobs/invert_dataset.py --input pipeline/samples --output $(DEMO)/table \
	  --keep-crops --keep-steps --part-size 8
	@$(BIN)/python jobs/contact_sheet.py --table $(DEMO)/table --output $(DEMO)/contact_sheet.png \
	  --limit 16 --title "ReStyle, five steps, embedded demo model"

# The commands are printed, as an introduction to them.
tour: .venv/installed ## after the demo: query its table, edit faces, find similar ones, write a report
	@test -f $(DEMO)/table/_table.json || $(MAKE) --no-print-directory demo
	$(BIN)/restyle query $(DEMO)/table "SELECT image_id, lpips, yaw FROM latents ORDER BY lpips LIMIT 6"
	$(BIN)/restyle edit --table $(DEMO)/table --order lpips --limit 6 --output $(DEMO)/edits.png \
	  --direction smile --strength 0,3,0,0 --direction age --strength 0,0,3,0 \
	  --direction pose --strength 0,0,0,3
	$(BIN)/restyle find --table $(DEMO)/table --like $(FACE) -k 3
	$(BIN)/restyle report --table $(DEMO)/table --faces --output $(DEMO)/report.html
	@printf 'open %s\n' $(DEMO)/edits.png $(DEMO)/report.html

demo-toonify: .venv/installed ## draw the sample faces as cartoons: a face model begins, a second goes on
	@rm -rf $(DEMO)/toonify
	@$(BIN)/python jobs/invert_dataset.py --input pipeline/samples --output $(DEMO)/toonify \
	  --model demo-toonify --bootstrap demo --bootstrap-steps 1 --steps 5 \
	  --keep-crops --keep-steps --part-size 8
	@$(BIN)/python jobs/contact_sheet.py --table $(DEMO)/toonify --output $(DEMO)/toonify.png \
	  --limit 12 --title "Photo, average, inversion, cartoon: encoder bootstrapping"

test: .venv/installed ## run the tests: no network, no GPU
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed ## run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

compat: .venv/installed ## run the tests on other releases of Ray and Python (COMPAT="--ray 2.59.0")
	@$(BIN)/python -m tests.compat $(COMPAT)

hosts: .venv/installed ## run jobs over hosts that are apart, on this machine: root, Linux, five minutes
	@$(BIN)/python -m pytest -m slow tests/hosts

faults: .venv/installed ## break running jobs by SCHEDULES=100 seeded schedules
	@$(BIN)/python -m tests.faults --schedules $(or $(SCHEDULES),100)

fuzz: .venv/installed ## feed it N=100000 damaged inputs
	@$(BIN)/python -m tests.fuzz --count $(or $(N),100000)

audit: .venv/installed ## look for a hash of each pinned package, and for known vulnerabilities with pip-audit
	@$(BIN)/python -m tests.security.audit

check: .venv/installed audit ## lint, formatting, types, and the audit
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/hadolint cluster/Containerfile

bench: .venv/installed ## measure speed and memory against what they are compared to
	@for bench in tests/bench/*.py; do \
	  case $$bench in */__init__.py|*/test_*.py) continue;; esac; \
	  echo "== $$bench"; $(BIN)/python $$bench $(BENCH_FLAGS) || exit 1; \
	done
	@$(BIN)/python jobs/benchmark.py --simulate --images 1000,100000 --speed 1000 $(BENCH_FLAGS)

# Not build/, where training leaves checkpoints of hours.
clean: ## remove the demo's output, caches and the virtual environment
	rm -rf $(DEMO) .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info

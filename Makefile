# Every target makes its own environment (.venv/) first.
.PHONY: test lint format bench archive chat setup data

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

test: data
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

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

archive chat:
	@echo "make $@ is not built yet." >&2; exit 2

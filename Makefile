# Every target makes its own environment (.venv/) first.
.PHONY: test lint format bench archive chat setup data

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

test: data
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

setup:
	./setup.sh

data: setup
	$(BIN)/dvc pull --quiet data.dvc pretrain/dvc.yaml

bench archive chat:
	@echo "make $@ is not built yet." >&2; exit 2

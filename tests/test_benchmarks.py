"""The benchmarks' own file: each keeps its newest result."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that writes the file, which it keeps in a scratch folder here."""
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LATEST", tmp_path / "latest.json")
    monkeypatch.setattr(module, "commit", lambda: "a1")
    return module


def written(results: Any) -> dict[str, Any]:
    return {row["id"]: row for row in json.loads(results.LATEST.read_text(encoding="utf-8"))["benchmarks"]}


def test_a_run_of_one_benchmark_keeps_the_others_newest_results(results: Any) -> None:
    results.write([{"id": "P1", "ratio": 1.0}, {"id": "P3", "ratio": 2.0}], {"P4": "no GPU"})
    results.commit = lambda: "b2"
    results.write([{"id": "P3", "ratio": 3.0}], {"P1": "no peer", "P4": "still no GPU"})
    rows = written(results)
    assert {name: (row.get("ratio"), row.get("commit")) for name, row in rows.items()} == {
        "P1": (1.0, "a1"), "P3": (3.0, "b2"), "P4": (None, None),
    }  # fmt: skip
    assert rows["P4"]["skipped"] == "still no GPU"
    assert rows["P1"]["machine"]["cores"] > 0

"""The stand-in for the hub (benchmarks/full_size.py): a small one goes the whole way, and what the full-size one gave is kept."""

import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from mi_llm import storage
from mi_llm.models.hub import entry_of
from mi_llm.study import load


@pytest.mark.slow
def test_a_small_stand_in_goes_the_whole_way_from_the_hub_to_replies(tmp_path: Path) -> None:
    size = ["--layers", "2", "--hidden", "256"]
    command = [sys.executable, "benchmarks/full_size.py", str(tmp_path / "work"), *size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = storage.read_json(tmp_path / "work" / "results.json")
    assert (results["base"]["tensors_read"], results["base"]["tensors_written"]) == (3 + 2 * 7, 3 + 2 * 9)
    assert results["model"]["served_gb_on_disk"] < results["model"]["served_gb"] / 10
    assert results["finetune"]["equal_bytes"]
    assert results["finetune"]["metrics"]["steps"] == 3
    assert results["respond"]["rounds"] == 6
    assert "a flipped bit was found, and the file fetched again" in done.stdout


def test_the_figures_that_are_kept_are_of_the_size_that_the_pins_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kept = storage.read_json(ROOT / "benchmarks" / "results" / "full_size.json")
    pinned = entry_of(load(Path("params.yaml")), "baichuan2-7b")
    assert kept["model"]["parameters"] == pinned.parameters
    assert (kept["base"]["tensors_read"], kept["base"]["tensors_written"]) == (227, 291)
    assert kept["finetune"]["equal_bytes"]
    assert kept["respond"]["rounds"] == 6

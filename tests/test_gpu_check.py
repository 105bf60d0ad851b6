"""The checks for a GPU (benchmarks/gpu/), gone through in miniature on whatever is here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from mi_llm import storage

CHECKS = ["environment", "determinism", "attention", "checkpoint", "finetune", "respond", "keys_and_values", "four_bit"]


@pytest.mark.slow
def test_every_check_for_a_gpu_runs_in_miniature(tmp_path: Path) -> None:
    places = {"WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    environment = os.environ | places | {"TRIAL": "1"}
    done = subprocess.run(["benchmarks/gpu/run.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.findall(r"^=== (\w+),", done.stdout, re.MULTILINE) == CHECKS
    assert (tmp_path / "out" / "log.txt").read_text(encoding="utf-8").strip() == done.stdout.strip()
    results = storage.read_json(tmp_path / "out" / "results.json")
    assert sorted(results) == sorted(CHECKS)
    kernels = {name: answers for name, answers in results["environment"].items() if "torch." in name}
    assert len(kernels) == 10
    assert all("MATH" in answers for answers in kernels.values())
    assert set(results["determinism"]) == {"as_the_bundle_sets_it", "warn_only", "strict"}
    assert results["determinism"]["strict"]["same"]
    assert all(milliseconds > 0 for milliseconds in results["attention"].values())
    assert results["checkpoint"]["parameters"] > 2_000_000
    tuned = results["finetune"]
    assert (tuned["killed_rc"], tuned["resumed_rc"]) == (-9, 0)
    assert (tuned["metrics"]["records"], tuned["metrics"]["steps"], tuned["pace"]["step"]) == (32, 4, 3)
    assert tuned["metrics"]["tokens"] == 32 * 64  # every record is cut: none is shorter than the cut-off
    for arm in ("base", "tuned"):
        assert results["respond"][arm]["rounds"] > 10
        assert results["respond"][arm]["tokens_per_second"] > 0
    assert results["keys_and_values"]["ms_a_token"] > 0
    assert "skipped" in results["four_bit"] or results["four_bit"]["respond_rc"] == 0

"""Benchmark P4, which needs GPUs, in its trial: a miniature of its model on whatever is here, in all its ways."""

import re
import subprocess
import sys

import pytest
import torch
from repository import ROOT


@pytest.mark.slow
def test_every_way_trains_and_is_measured() -> None:
    command = [sys.executable, "benchmarks/roofline.py", "trial"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared_out = ["", ", 2 processes", ", 2 processes that share the base"]
    if torch.cuda.is_available():
        cards = torch.cuda.device_count()
        shared_out = [""] if cards == 1 else [name.replace("2", str(cards)) for name in shared_out]
    row = re.compile(r"^  (.+): ([\d,]+) tokens/s, (\d+\.\d) GiB held, (\d+\.\d) GiB estimated$", re.MULTILINE)
    measured = {name: (int(speed.replace(",", "")), float(held)) for name, speed, held, _ in row.findall(done.stdout)}
    assert list(measured) == [way + processes for way in ("plain", "checkpointing") for processes in shared_out]
    assert all(speed > 0 and held > 0 for speed, held in measured.values())

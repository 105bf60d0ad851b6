"""What a benchmark returns, and the file that `make bench` writes: benchmarks/results/latest.json.

A benchmark module has `main() -> Result`. It measures both sides in the same run and judges its goal on nothing else; what it
cannot measure here (a missing peer, missing data) it refuses with `Skipped`, and the file then names it without a verdict.
"""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import psutil

from mi_llm import storage

LATEST = Path(__file__).parent / "results" / "latest.json"
TRACED = ("torch", "transformers", "peft", "tokenizers", "numpy", "sacrebleu", "openai")


class Skipped(Exception):  # noqa: N818
    """A benchmark cannot be measured here; the message says why and what to do."""


class Spread(TypedDict):
    """A measured quantity: the median of the repetitions, the least, the most, and all of them."""

    median: float
    least: float
    most: float
    values: list[float]


class Result(TypedDict):
    """One benchmark: what was done, both sides, how they compare, and whether the goal was met in this run.

    `ours` and `peers` hold what was measured, each quantity with its spread and its unit in its name. `ratio` is the one that
    `goal` speaks of. `details` holds whatever else the benchmark's page shows.
    """

    id: str
    work: str
    ours: dict[str, Any]
    peers: dict[str, dict[str, Any]]
    ratio: float
    goal: str
    met: bool
    details: dict[str, Any]


def spread(values: Sequence[float]) -> Spread:
    """Median and spread of repeated measurements."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
        "values": [round(value, 4) for value in values],
    }


def machine() -> dict[str, Any]:
    """Facts of the machine that bear on the figures: processor, usable cores, memory, versions."""
    described = {}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        described = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": described.get("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in TRACED},
    }


def peak_memory() -> float:
    """The most memory this process has held so far, in MB (Linux; `getrusage` would count the process that started it too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def show(result: Result) -> None:
    """Print one benchmark's comparison."""
    print(f"{result['id']} {result['work']}")
    for side, measured in {"ours": result["ours"], **result["peers"]}.items():
        for name, value in measured.items():
            spreads = isinstance(value, dict) and "median" in value
            shown = f"{value['median']:g} ({value['least']:g} to {value['most']:g})" if spreads else value
            print(f"  {side:16} {name}: {shown}")
    print(f"  ratio {result['ratio']:.2f}; goal: {result['goal']}: {'met' if result['met'] else 'not met'}", flush=True)


def commit() -> str:
    """The commit of this working tree, with `-dirty` where it holds changes."""
    command = ["git", "-C", str(LATEST.parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(measured: Sequence[Result], skipped: dict[str, str]) -> None:
    """Put this run's results into the file, each with its commit and machine; other benchmarks keep their newest result.

    `skipped` says why a benchmark was not measured; it stands there only until there is a result.
    """
    earlier = storage.read_json(LATEST)["benchmarks"] if LATEST.exists() else []
    rows: dict[str, Any] = {name: {"id": name, "met": None, "skipped": reason} for name, reason in skipped.items()}
    rows |= {row["id"]: row for row in earlier if "skipped" not in row}
    rows |= {result["id"]: {**result, "commit": commit(), "machine": machine()} for result in measured}
    storage.write_json(LATEST, {"benchmarks": sorted(rows.values(), key=lambda row: str(row["id"]))})

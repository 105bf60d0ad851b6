"""Runs the benchmarks, all or the named ones, and puts their results into benchmarks/results/latest.json.

    python benchmarks/run.py
    python benchmarks/run.py P2 P5

Each compares the bundle with a peer in the same run. What cannot be measured here is skipped, with the reason. Ends with
status 1 if a goal was missed.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import results

MODULES = {
    "P1": "answering", "P2": "training", "P3": "scoring", "P4": "roofline", "P5": "reading", "P6": "recording", "P8": "serving",
}  # fmt: skip


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks, one after the other."""
    unknown = set(names) - set(MODULES)
    if unknown:
        print(f"{', '.join(sorted(unknown))}: no such benchmark; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    measured: list[results.Result] = []
    skipped: dict[str, str] = {}
    for name in names or MODULES:
        try:
            measured.append(import_module(MODULES[name]).main())
            results.show(measured[-1])
        except results.Skipped as reason:
            skipped[name] = str(reason)
            print(f"{name} skipped: {reason}", flush=True)
        results.write(measured, skipped)  # after each: a run takes long, and may be stopped
    print(f"written: {results.LATEST}")
    return int(not all(result["met"] for result in measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
